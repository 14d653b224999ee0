"""Distillation: beside the plain formulas in fp64, and never a whole matrix of logits."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from qwq.errors import UsageError
from qwq.model import Decoder
from qwq.objectives import IGNORE, Distillation, Mixture, cross_entropy_sum
from qwq.objectives.distillation import distillation_sum
from qwq.train.gradients import compute_gradients


def case(tokens=23, vocabulary=50, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, tokens, 16, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, 16, generator=generator, dtype=dtype, requires_grad=True)
    teacher = torch.randn(2, tokens, 24, generator=generator, dtype=dtype)
    teacher_weight = torch.randn(vocabulary, 24, generator=generator, dtype=dtype)
    labels = torch.randint(vocabulary, (2, tokens), generator=generator)
    labels[torch.rand(2, tokens, generator=generator) < 0.3] = IGNORE
    return hidden, weight, teacher, teacher_weight, labels


def plain(hidden, weight, teacher, teacher_weight, labels, mixture):
    """All logits at once, torch's own losses."""
    kept, t = labels != IGNORE, mixture.temperature
    student, teacher = hidden[kept] @ weight.t(), teacher[kept] @ teacher_weight.t()
    s, q = (student / t).log_softmax(-1), (teacher / t).log_softmax(-1)
    forward = F.kl_div(s, q, log_target=True, reduction="sum")
    reverse = F.kl_div(q, s, log_target=True, reduction="sum")
    soft = (1 - mixture.reverse) * forward + mixture.reverse * reverse
    hard = F.cross_entropy(student, labels[kept], reduction="sum")
    return mixture.hard * hard + (1 - mixture.hard) * t**2 * soft


@pytest.mark.parametrize(
    ("hard", "temperature", "reverse"), itertools.product((0.0, 0.3, 1.0), (1.0, 2.5), (0.0, 0.4, 1.0))
)
def test_equals_the_plain_formulas_forward_and_backward(hard, temperature, reverse):
    mixture, inputs = Mixture(hard, temperature, reverse), case()
    hidden, weight = inputs[:2]
    expected = plain(*inputs, mixture)
    reference = torch.autograd.grad(0.3 * expected, (hidden, weight))
    for chunk_size in (1, 7, 1000):
        loss = distillation_sum(*inputs, mixture, chunk_size)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        for ours, theirs in zip(torch.autograd.grad(0.3 * loss, (hidden, weight)), reference, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_all_weight_on_the_labels_is_cross_entropy():
    hidden, weight, *teacher, labels = case()
    loss = distillation_sum(hidden, weight, *teacher, labels, Mixture(hard=1.0))
    assert loss.item() == pytest.approx(cross_entropy_sum(hidden, weight, labels).item(), rel=1e-12)


def test_a_student_that_is_its_teacher_has_no_divergence():
    hidden, weight, _, _, labels = case()
    for reverse in (0.0, 1.0):
        loss = distillation_sum(hidden, weight, hidden.detach(), weight.detach(), labels, Mixture(0.0, 2.0, reverse))
        assert loss.item() == pytest.approx(0, abs=1e-9)
        for gradient in torch.autograd.grad(loss, (hidden, weight)):
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)


class Largest(TorchDispatchMode):
    """The most elements that any operator returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_tensor_is_larger_than_a_chunk_of_logits_or_the_output_matrix():
    """With QwQ's 152,064 ids: all logits of one model would be 64 x 152,064, and nothing near it ever exists."""
    tokens, vocabulary, chunk = 64, 152_064, 4
    hidden = torch.randn(1, tokens, 8, requires_grad=True)
    weight = torch.randn(vocabulary, 8, requires_grad=True)
    teacher, labels = torch.randn(1, tokens, 8), torch.randint(vocabulary, (1, tokens))
    with Largest() as seen:
        distillation_sum(hidden, weight, teacher, weight.detach(), labels, Mixture(0.5, 2.0, 0.5), chunk).backward()
    assert seen.elements == weight.numel()
    assert chunk * vocabulary < seen.elements < tokens * vocabulary / 4


def models(tiny_config):
    teacher, student = Decoder(tiny_config), Decoder(tiny_config)
    teacher.init_weights(seed=1)
    student.init_weights(seed=2)
    return teacher, student


def test_a_student_comes_nearer_to_its_teacher_and_the_teacher_stays(tiny_config):
    teacher, student = models(tiny_config)
    before = [p.clone() for p in teacher.parameters()]
    objective = Distillation(teacher, Mixture(hard=0.0))
    ids = torch.randint(tiny_config.vocab_size, (2, 20))
    optimizer, losses = torch.optim.AdamW(student.parameters(), 3e-3), []
    for _ in range(20):
        losses.append(compute_gradients(student, [objective.batch((ids, ids), torch.Generator())], objective))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_on_policy_batches_are_the_students_own_words_and_only_the_teacher_judges_them(tiny_config, generator):
    """The prompt is a quarter of the window and asks for nothing; the labels' own loss has no weight."""
    teacher, student = models(tiny_config)
    asked = []

    def sample(prompts, tokens):
        asked.append((prompts.shape, tokens))
        return torch.cat((prompts, prompts.new_full((len(prompts), tokens), 5)), 1)

    objective = Distillation(teacher, Mixture(hard=0.5), on_policy=0.5, sample=sample)
    ids = torch.randint(tiny_config.vocab_size, (2, 16))
    batches = [objective.batch((ids, ids), generator) for _ in range(40)]
    own = [batch for batch in batches if batch.sampled]
    assert 8 < len(own) < 32
    assert asked == [(torch.Size([2, 4]), 13)] * len(own)
    assert own[0].input_ids.shape == own[0].labels.shape == ids.shape
    assert own[0].input_ids[:, :4].equal(ids[:, :4])
    assert (own[0].labels[:, :3] == IGNORE).all()
    assert (own[0].labels[:, 3:] == 5).all()
    with torch.no_grad():
        teacher_hidden, hidden = teacher.hidden(own[0].input_ids), student.hidden(own[0].input_ids)
        judged = distillation_sum(
            hidden, student.lm_head.weight, teacher_hidden, teacher.lm_head.weight, own[0].labels, Mixture(hard=0.0)
        )
    assert objective.loss(student, own[0]).item() == pytest.approx(judged.item(), rel=1e-5)


def test_held_out_loss_is_the_plain_one(tiny_config):
    """A student is compared with models that had no teacher."""
    teacher, student = models(tiny_config)
    ids = torch.randint(tiny_config.vocab_size, (2, 20))
    objective = Distillation(teacher)
    with torch.no_grad():
        loss = objective.loss(student, objective.batch((ids, ids), torch.Generator()))
        plain_loss = cross_entropy_sum(student.hidden(ids), student.lm_head.weight, ids)
    assert loss.item() == pytest.approx(plain_loss.item(), rel=1e-6)


def test_what_is_missing_or_does_not_fit_is_said(tiny_config, generator):
    import dataclasses

    teacher, student = models(tiny_config)
    with pytest.raises(UsageError, match="needs `sample`"):
        Distillation(teacher, on_policy=0.2)
    other = Decoder(dataclasses.replace(tiny_config, vocab_size=100))
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(UsageError, match="must share a vocabulary"):
        Distillation(other).loss(student, Distillation(other).batch((ids, ids), generator))
