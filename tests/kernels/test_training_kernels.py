"""What training computes by hand is what torch computes, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from qwq.kernels.attention import causal_attention
from qwq.kernels.elementwise import rms_norm, rotate


def gradients(call, *inputs):
    """The result and the gradients of `inputs` for one fixed random gradient."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = call(*leaves)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("tokens", [16, 100, 256, 300])
def test_causal_attention_equals_sdpa(heads, key_heads, tokens):
    """Less than, exactly, and more than one block of queries; heads laid out as the model has them."""
    shapes = [(2, tokens, n, 16) for n in (heads, key_heads, key_heads)]
    inputs = [torch.randn(shape).transpose(1, 2) for shape in shapes]

    def plain(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    for a, b in zip(gradients(causal_attention, *inputs), gradients(plain, *inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_a_token_does_not_see_later_ones():
    """Changing the last key and value changes the last row only."""
    q, k, v = (torch.randn(1, 2, 40, 16, requires_grad=True) for _ in range(3))
    before = causal_attention(q, k, v)
    with torch.no_grad():
        k[:, :, -1], v[:, :, -1] = 5.0, 7.0
    after = causal_attention(q, k, v)
    assert torch.equal(before[:, :, :-1], after[:, :, :-1])
    assert not torch.equal(before[:, :, -1], after[:, :, -1])


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
