"""RMSNorm and the rotary turn with gradients written out: a third of the passes over memory that autograd's own take.

Used for training outside torch.compile, which fuses the plain forms by itself.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def _by_hand(x: Tensor) -> bool:
    """Whether the written-out form is the one to take: eager training on a CPU."""
    return torch.is_grad_enabled() and x.requires_grad and x.device.type == "cpu" and not torch.compiler.is_compiling()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension (arXiv:1910.07467); `F.rms_norm` is the reference."""
    return _RMSNorm.apply(x, weight, eps) if _by_hand(x) else F.rms_norm(x, weight.shape, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normal = x * scale
        product = grad * normal
        grad_weight = product.flatten(0, -2).sum(0)
        along = (product @ weight).div_(-x.shape[-1]).unsqueeze_(-1)  # [..., 1]: what the scale itself answers for
        return (grad * weight).addcmul_(normal, along).mul_(scale), grad_weight, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [B, heads, T, D] by the angles of its positions; cos, sin [B, 1, T, D] (arXiv:2104.09864)."""
    if _by_hand(x):
        half = x.shape[-1] // 2
        return _Rotate.apply(x, cos[..., :half], sin[..., :half])
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _turn(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    (a, b), (to_a, to_b) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(a, cos, out=to_a).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=to_b).addcmul_(a, sin, value=sign)
    return out


class _Rotate(torch.autograd.Function):
    """The gradient of a turn is the turn back."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, sin, -1), None, None
