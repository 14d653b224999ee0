"""The fast linear layer is F.linear, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

import qwq.kernels.linear
from qwq.kernels.linear import Linear, linear, weight_gradient


@pytest.fixture(params=[0, 2**20], autouse=True)
def smallest(request, monkeypatch):
    """Both libraries, whatever the size."""
    monkeypatch.setattr(qwq.kernels.linear, "_SMALL", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 8, 5), (40, 32, 96), (40, 96, 32), (33, 17, 31)])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_f_linear_forward_and_backward(dtype, rows, inputs, outputs, bias):
    """Wide and narrow, so that both orders of the weight's gradient are taken."""
    x = torch.randn(2, rows, inputs, dtype=dtype, requires_grad=True)
    layer = Linear(inputs, outputs, bias=bias, dtype=dtype)
    grad = torch.randn(2, rows, outputs, dtype=dtype)
    layer(x).backward(grad)
    ours = [x.grad, *(p.grad for p in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    expected = F.linear(x, layer.weight, layer.bias)
    expected.backward(grad)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(ours, [x.grad, *(p.grad for p in layer.parameters())], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_views_that_are_not_contiguous():
    """A transposed input, as attention's output is, and a gradient of stride 0."""
    x = torch.randn(3, 24, 20).transpose(1, 2).requires_grad_()
    weight = torch.randn(40, 24, requires_grad=True)
    linear(x, weight).sum().backward()
    ours = x.grad, weight.grad
    x.grad = weight.grad = None
    F.linear(x, weight).sum().backward()
    torch.testing.assert_close(ours[0], x.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours[1], weight.grad, rtol=1e-4, atol=1e-4)


def test_bf16_goes_the_plain_way():
    """Only fp32 on a CPU has a faster one."""
    x, weight = torch.randn(30, 16).bfloat16(), torch.randn(8, 16).bfloat16()
    assert torch.equal(linear(x, weight), F.linear(x, weight))


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 64), (64, 24)])
def test_weight_gradient_sums_over_all_leading_dimensions(inputs, outputs):
    """Against einsum."""
    grad, x = torch.randn(2, 20, outputs), torch.randn(2, 20, inputs)
    expected = torch.einsum("bto,bti->oi", grad.double(), x.double()).float()
    torch.testing.assert_close(weight_gradient(grad, x), expected, rtol=1e-4, atol=1e-4)
