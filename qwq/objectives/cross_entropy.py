"""Cross-entropy of labels over a vocabulary, in chunks that bound the memory.

Shapes: B batch, T tokens, N tokens with a label, C hidden_size, V vocab_size.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from qwq.kernels.linear import linear, weight_gradient

IGNORE = -100  # the label of a token that is not learned from


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient is taken in the forward pass, chunk by chunk, so that [N, V] logits never exist as a whole.

    The idea is Liger Kernel's fused linear cross-entropy (arXiv:2410.10989), here with plain matrix products.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int) -> Tensor:
        training = any(ctx.needs_input_grad[:2])
        matrix = weight.to(hidden.dtype)  # bf16 where the model computes in bf16
        loss = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if training else None
        grad_weight = torch.zeros_like(weight) if training else None
        for start in range(0, len(labels), chunk_size):
            rows = slice(start, start + chunk_size)
            x, target = hidden[rows], labels[rows, None]
            log_p = linear(x, matrix).to(loss.dtype)  # [chunk, V]
            log_p = log_p.log_softmax(-1)
            loss -= log_p.gather(1, target).sum()
            if grad_hidden is not None and grad_weight is not None:
                grad = log_p.exp_()
                grad.scatter_add_(1, target, grad.new_full((), -1.0).expand_as(target))
                grad = grad.to(hidden.dtype)
                grad_hidden[rows] = linear(grad, matrix.t())
                grad_weight += weight_gradient(grad, x)
        if grad_hidden is not None and grad_weight is not None:
            ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, None, None


def cross_entropy_sum(hidden: Tensor, weight: Tensor, labels: Tensor, chunk_size: int = 512) -> Tensor:
    """Sum over tokens of -log p(label), in nats, of logits = hidden @ weight.T.

    hidden [..., C], weight [V, C], labels [...] with -100 where there is nothing to learn. Differentiable once. At most
    [chunk_size, V] logits exist at a time; in exchange the gradient of `weight` is made in the forward pass.
    """
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    valid = labels != IGNORE
    if not bool(valid.all()):
        hidden, labels = hidden[valid], labels[valid]
    return _ChunkedCrossEntropy.apply(hidden, weight, labels, chunk_size)


def reference_sum(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The same number the plain way, all logits at once: what tests compare with."""
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORE, reduction="sum")
