"""Matrix product for linear layers: oneDNN where it beats the BLAS that torch was built with.

torch's fp32 `F.linear` on CPU calls MKL, which takes its AVX2 path on AMD processors; oneDNN generates AVX-512 code
there and is about twice as fast (docs/log.md). On Intel both are equal, so there is nothing to choose.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_mkldnn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
_SMALL = 2**20  # multiplications below which a call of oneDNN costs more than it saves (measured: docs/log.md)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """[..., K] x [N, K] -> [..., N]; either side may be a transposed view, oneDNN reads it in place."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


# An operator of our own around it: torch.compile takes it as it is, where it would lower mkldnn's and fail.
_library = torch.library.Library("qwq", "FRAGMENT")
_library.define("product(Tensor x, Tensor weight) -> Tensor")
_library.impl("product", _product, "CPU")


@torch.library.register_fake("qwq::product")
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def available(x: Tensor) -> bool:
    """Whether oneDNN's product takes this kind of tensor: fp32 on a CPU."""
    return _mkldnn_linear is not None and x.device.type == "cpu" and x.dtype == torch.float32


def _takes(x: Tensor, outputs: int) -> bool:
    """Whether oneDNN is the one to ask for x [..., in] times [in, outputs]: it can, and it is worth a call."""
    return available(x) and x.numel() * outputs >= _SMALL


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.qwq.product(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = torch.ops.qwq.product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = weight_gradient(grad, x) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """grad [..., out] and x [..., in], summed over all rows -> [out, in]: the gradient of a linear layer's weight.

    Of the two ways to write the product, the one whose result has the longer rows is up to 1.6 times faster.
    """
    grad, x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    if not _takes(x, grad.shape[1]):
        return grad.t() @ x
    if grad.shape[1] > x.shape[1]:
        return torch.ops.qwq.product(x.t(), grad.t()).t()
    return torch.ops.qwq.product(grad.t(), x.t())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x [..., in] times weight [out, in] transposed, plus bias [out] -> [..., out].

    oneDNN takes large products of fp32 CPU tensors; everything else goes to `F.linear`, the reference.
    """
    if not _takes(x, len(weight)):
        return F.linear(x, weight, bias)
    y = _OneDNNLinear.apply(x, weight)
    return y if bias is None else y + bias


class Linear(torch.nn.Linear):
    """`nn.Linear` (same parameters, same names) through `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
