"""Chunked cross-entropy is plain cross-entropy."""

import pytest
import torch

from qwq.objectives import cross_entropy_sum
from qwq.objectives.cross_entropy import reference_sum


def case(tokens, masked, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, tokens, 16, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, dtype=dtype, requires_grad=True)
    labels = torch.randint(50, (3, tokens), generator=generator)
    labels[torch.rand(3, tokens, generator=generator) < masked] = -100
    return hidden, weight, labels


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("masked", [0.0, 0.4])
def test_equals_plain_cross_entropy_forward_and_backward(chunk_size, masked):
    """In fp64, times a factor, so that the gradient that comes in is used."""
    hidden, weight, labels = case(21, masked)
    (0.3 * cross_entropy_sum(hidden, weight, labels, chunk_size)).backward()
    ours = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    plain = reference_sum(hidden, weight, labels)
    (0.3 * plain).backward()
    assert cross_entropy_sum(hidden, weight, labels, chunk_size).item() == pytest.approx(plain.item(), rel=1e-12)
    torch.testing.assert_close(ours[0], hidden.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours[1], weight.grad, rtol=1e-10, atol=1e-12)


def test_large_logits_do_not_overflow():
    """A token of probability 0 in fp32 still has a finite cost."""
    hidden = torch.tensor([[200.0, 0.0]])
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert cross_entropy_sum(hidden, weight, torch.tensor([1])).item() == pytest.approx(400.0)


def test_without_gradients_the_same_number():
    """Evaluation makes no gradient and needs none."""
    hidden, weight, labels = case(21, 0.2)
    with torch.no_grad():
        value = cross_entropy_sum(hidden, weight, labels, 8)
    assert not value.requires_grad
    assert value.item() == pytest.approx(reference_sum(hidden, weight, labels).item(), rel=1e-12)


def test_bf16_hidden_states_over_fp32_weights():
    """As under autocast: products in bf16, the loss in fp32, each gradient in the type of its tensor."""
    hidden, weight, labels = case(40, 0.1, torch.float32)
    low = hidden.detach().bfloat16().requires_grad_()
    loss = cross_entropy_sum(low, weight, labels, 16)
    loss.backward()
    assert (loss.dtype, low.grad.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert loss.item() == pytest.approx(reference_sum(hidden, weight, labels).item(), rel=0.02)


def test_every_label_masked_costs_nothing():
    """0, with gradients of 0."""
    hidden, weight, labels = case(5, 1.1)
    loss = cross_entropy_sum(hidden, weight, labels)
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()
