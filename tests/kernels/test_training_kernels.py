"""What training computes by hand is what torch computes, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from qwq.kernels.elementwise import rms_norm, rotate


def gradients(call, *inputs):
    """The result and the gradients of `inputs` for one fixed random gradient."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = call(*leaves)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("shape", [(7, 32), (2, 5, 3, 16)])
def test_rms_norm_in_fp64(shape):
    """And weight's gradient is summed over every leading dimension."""
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(shape[-1], dtype=torch.float64)
    ours = gradients(lambda x, w: rms_norm(x, w, 1e-6), x, weight)
    plain = gradients(lambda x, w: F.rms_norm(x, w.shape, w, 1e-6), x, weight)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_rotate_in_fp64():
    """Against the formula with both halves joined."""
    x, angles = torch.randn(2, 3, 9, 8, dtype=torch.float64), torch.randn(1, 1, 9, 4, dtype=torch.float64)
    cos, sin = (torch.cat((f(angles), f(angles)), -1) for f in (torch.cos, torch.sin))

    def plain(x):
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    for a, b in zip(gradients(lambda x: rotate(x, cos, sin), x), gradients(plain, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert torch.equal(rotate(x, cos, sin), plain(x))
