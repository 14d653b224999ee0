"""Matrix product for linear layers: oneDNN where it beats the BLAS that torch was built with.

torch's fp32 `F.linear` on CPU calls MKL, which takes its AVX2 path on AMD processors; oneDNN generates AVX-512 code
there and is about twice as fast (docs/log.md). On Intel both are equal, so there is nothing to choose.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_mkldnn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """[M, K] x [N, K] -> [M, N]; either side may be a transposed view, oneDNN reads it in place."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _product(grad, weight.t())
        if ctx.needs_input_grad[1]:
            rows, columns = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
            grad_weight = _product(columns.t(), rows.t()).t()
        return grad_x, grad_weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x [..., in] times weight [out, in] transposed, plus bias [out] -> [..., out].

    oneDNN takes fp32 CPU tensors of more than a few rows; everything else goes to `F.linear`, the reference.
    """
    if _mkldnn_linear is None or x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() < 16 * x.shape[-1]:
        return F.linear(x, weight, bias)
    y = _OneDNNLinear.apply(x, weight)
    return y if bias is None else y + bias


class Linear(torch.nn.Linear):
    """`nn.Linear` (same parameters, same names) through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
