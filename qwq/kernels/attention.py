"""Causal attention for training in fp32 on a CPU: oneDNN products where torch's kernel goes through MKL.

Shapes: B batch, H query heads, K key/value heads, G = H / K, T tokens, D head_dim.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from qwq.kernels.linear import available

_ROWS = 256  # queries of one head that are computed together; keys beyond them are skipped


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D), keys up to the query's own) v: [B, H, T, D], [B, K, T, D] twice -> [B, H, T, D].

    fp32 on a CPU with gradients takes oneDNN's products; all else is `F.scaled_dot_product_attention`, the reference.
    """
    training = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if training and available(query) and not torch.compiler.is_compiling() and query.shape[2] >= 16:
        return _CausalAttention.apply(query, key, value)
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[int, int, slice, slice, slice]]:
    """(batch, key head, its query heads, rows, keys) of every product; few enough to loop over in Python."""
    group, tokens = query.shape[1] // key.shape[1], query.shape[2]
    for batch in range(query.shape[0]):
        for head in range(key.shape[1]):
            heads = slice(head * group, (head + 1) * group)
            for start in range(0, tokens, _ROWS):
                end = min(start + _ROWS, tokens)
                yield batch, head, heads, slice(start, end), slice(0, end)


def _probabilities(query: Tensor, key: Tensor, mask: Tensor, group: int) -> Tensor:
    """Scaled query [G * rows, D], key [keys, D] -> [G * rows, keys]; the last `rows` keys are the queries' own."""
    scores = torch.ops.qwq.product(query, key)
    rows = len(query) // group
    scores.view(group, rows, -1)[:, :, -rows:].add_(mask[:rows, :rows])
    return scores.softmax(-1)


class _CausalAttention(torch.autograd.Function):
    """Probabilities are made again in the backward pass, as in FlashAttention (arXiv:2205.14135)."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        group, size = query.shape[1] // key.shape[1], query.shape[-1]
        query, key, value = query * size**-0.5, key.contiguous(), value.contiguous()
        mask = query.new_full((_ROWS, _ROWS), -torch.inf).triu(1)
        out = torch.empty(query.shape, dtype=query.dtype)
        for batch, head, heads, rows, keys in _blocks(query, key):
            q = query[batch, heads, rows].reshape(-1, size)
            p = _probabilities(q, key[batch, head, keys], mask, group)
            out[batch, heads, rows] = torch.ops.qwq.product(p, value[batch, head, keys].t()).view(group, -1, size)
        ctx.save_for_backward(query, key, value, mask)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, mask = ctx.saved_tensors
        group, size = query.shape[1] // key.shape[1], query.shape[-1]
        grad_query = torch.empty(query.shape, dtype=query.dtype)
        grad_key, grad_value = (torch.zeros_like(key).transpose(2, 3).contiguous() for _ in range(2))  # [B, K, D, T]
        for batch, head, heads, rows, keys in _blocks(query, key):
            q, g = query[batch, heads, rows].reshape(-1, size), grad[batch, heads, rows].reshape(-1, size)
            p = _probabilities(q, key[batch, head, keys], mask, group)
            grad_p = torch.ops.qwq.product(g, value[batch, head, keys])
            grad_value[batch, head, :, keys] += torch.ops.qwq.product(g.t(), p.t())
            grad_s = torch._softmax_backward_data(grad_p, p, -1, p.dtype)
            grad_key[batch, head, :, keys] += torch.ops.qwq.product(q.t(), grad_s.t())
            q_rows = torch.ops.qwq.product(grad_s, key[batch, head, keys].t())
            grad_query[batch, heads, rows] = q_rows.view(group, -1, size)
        return grad_query.mul_(size**-0.5), grad_key.transpose(2, 3), grad_value.transpose(2, 3)
