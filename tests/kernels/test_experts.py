"""Experts: every fast form computes what the loop over experts computes, forward and backward, and drops nothing."""

import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from qwq.kernels import compile as kernels
from qwq.kernels.experts import experts, grouped, reference
from qwq.model.layers import ACTIVATIONS

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler on this machine"
)


@pytest.fixture(params=["avx512", "avx2"])
def isa(request, monkeypatch):
    """Every instruction set that the kernel is for and this machine has."""
    order = list(kernels.INSTRUCTIONS)
    if order.index(request.param) < order.index(kernels.instructions()):
        pytest.skip(f"this machine has no {request.param}")
    monkeypatch.setenv("QWQ_INSTRUCTIONS", request.param)


def problem(tokens, size, inner, count, each, *, seed=0, dtype=torch.float32):
    """x, gate_up, down, weights and distinct experts of every token."""
    torch.manual_seed(seed)
    x = torch.randn(tokens, size, dtype=dtype)
    gate_up = torch.randn(count, 2 * inner, size, dtype=dtype) / math.sqrt(size)
    down = torch.randn(count, size, inner, dtype=dtype) / math.sqrt(inner)
    chosen = torch.rand(tokens, count).argsort(-1)[:, :each]
    return [x, gate_up, down, torch.rand(tokens, each, dtype=dtype)], chosen


def results(form, inputs, chosen, act, dtype=None):
    """The output and the gradients of all four inputs, for one fixed random gradient."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
    out = form(*leaves, chosen, act)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def close(ours, exact, tolerance=2e-6):
    for a, b in zip(ours, exact, strict=True):
        assert float((a.double() - b).norm()) <= tolerance * (
            float(b.norm()) + math.sqrt(b.numel())
        )  # terms are about 1


@needs_compiler
@pytest.mark.parametrize("act", ["silu", "relu2", "relu"])
@pytest.mark.parametrize("sizes", [(1, 8, 8, 2, 1), (70, 44, 52, 5, 2), (300, 64, 96, 3, 3), (96, 33, 17, 40, 2)])
def test_the_kernel_equals_the_loop_in_fp64(isa, sizes, act):
    """Sizes that are no multiple of a vector or a tile; experts with many tokens, one, and none."""
    inputs, chosen = problem(*sizes)
    exact = results(reference, inputs, chosen, ACTIVATIONS[act], torch.float64)
    close(results(experts, inputs, chosen, ACTIVATIONS[act]), exact)


@needs_compiler
@settings(deadline=None, max_examples=40)
@given(st.integers(1, 130), st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.data())
def test_the_kernel_equals_the_loop_for_any_size(tokens, size, inner, count, data):
    each = data.draw(st.integers(1, count))
    inputs, chosen = problem(tokens, size, inner, count, each, seed=data.draw(st.integers(0, 99)))
    exact = results(reference, inputs, chosen, F.silu, torch.float64)
    close(results(experts, inputs, chosen, F.silu), exact)


@needs_compiler
def test_all_tokens_at_one_expert_are_all_computed():
    """No capacity: however uneven the choice, every token has all of its experts."""
    inputs, _ = problem(200, 24, 40, 6, 1)
    chosen = torch.full((200, 1), 4)
    exact = results(reference, inputs, chosen, F.silu, torch.float64)
    ours = results(experts, inputs, chosen, F.silu)
    close(ours, exact)
    assert ours[0].norm(dim=-1).min() > 0
    assert not ours[2][[0, 1, 2, 3, 5]].any()  # who had no token has a gradient of zero


@needs_compiler
def test_the_kernel_gives_the_same_bits_with_any_number_of_threads():
    inputs, chosen = problem(150, 40, 56, 7, 2)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(results(experts, inputs, chosen, F.silu))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@needs_compiler
def test_gradients_without_strides_and_inputs_out_of_order_are_taken():
    """`.sum().backward()` hands down a gradient whose strides are zero."""
    (x, gate_up, down, weights), chosen = problem(40, 16, 24, 4, 2)
    found = []
    for form in (experts, reference):
        leaves = [t.clone().requires_grad_() for t in (x.t().contiguous().t(), gate_up, down, weights)]
        form(*leaves, chosen, F.silu).sum().backward()
        found.append([leaf.grad for leaf in leaves])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("act", ["silu", "gelu"])
def test_the_grouped_form_equals_the_loop(act):
    inputs, chosen = problem(60, 32, 48, 5, 2)
    exact = results(reference, inputs, chosen, ACTIVATIONS[act], torch.float64)
    close(results(grouped, inputs, chosen, ACTIVATIONS[act]), exact)
    close(results(grouped, inputs, chosen, ACTIVATIONS[act], torch.bfloat16), exact, 0.05)


def test_what_the_kernel_does_not_know_goes_another_way(monkeypatch):
    """gelu, fp64, and a processor with short vectors."""
    for size in (16, 17):  # torch's grouped product takes whole 16 bytes only
        inputs, chosen = problem(20, size, size, 4, 2)
        torch.testing.assert_close(experts(*inputs, chosen, F.gelu), reference(*inputs, chosen, F.gelu))
    doubles = [t.double() for t in inputs]
    assert torch.equal(experts(*doubles, chosen, F.silu), reference(*doubles, chosen, F.silu))
    monkeypatch.setenv("QWQ_INSTRUCTIONS", "generic")
    torch.testing.assert_close(experts(*inputs, chosen, F.silu), reference(*inputs, chosen, F.silu))
