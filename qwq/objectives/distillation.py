"""Knowledge distillation: a student learns a teacher's whole distribution, not only the token that came.

Shapes: N tokens with a label, C hidden_size (of the teacher: its own), V vocab_size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwq.errors import UsageError
from qwq.kernels.linear import linear, weight_gradient
from qwq.model import Decoder
from qwq.objectives.cross_entropy import IGNORE, cross_entropy_sum
from qwq.objectives.objective import Batch, Objective, Window


@dataclass(frozen=True)
class Mixture:
    """`hard` x cross-entropy + (1 - `hard`) x T^2 x divergence.

    The divergence is (1 - `reverse`) x KL(teacher, student) + `reverse` x KL(student, teacher), both softened by the
    temperature T; T^2 keeps its gradient the size of the cross-entropy's (arXiv:1503.02531). The reverse one looks for
    modes (MiniLLM, arXiv:2306.08543).
    """

    hard: float = 0.5
    temperature: float = 2.0
    reverse: float = 0.0


class _ChunkedDistillation(torch.autograd.Function):
    """As `cross_entropy_sum`: gradients in the forward pass, so that of either model only a chunk's logits exist."""

    @staticmethod
    def forward(
        ctx,
        hidden: Tensor,
        weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        labels: Tensor,
        mixture: Mixture,
        chunk_size: int,
    ) -> Tensor:
        kind = torch.promote_types(hidden.dtype, torch.float32)
        matrix, teacher_matrix = weight.to(hidden.dtype), teacher_weight.to(teacher_hidden.dtype)
        loss = torch.zeros((), dtype=kind, device=hidden.device)
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        for start in range(0, len(labels), chunk_size):
            rows = slice(start, start + chunk_size)
            logits = linear(hidden[rows], matrix).to(kind)
            teacher = linear(teacher_hidden[rows], teacher_matrix).to(kind)
            value, grad = _divergences(logits, teacher, mixture)
            if mixture.hard > 0:
                log_p = logits.log_softmax(-1)
                value -= mixture.hard * log_p.gather(1, labels[rows, None]).sum()
                grad += log_p.exp_().mul_(mixture.hard)
                grad.scatter_add_(1, labels[rows, None], grad.new_full((len(grad), 1), -mixture.hard))
            loss += value
            grad = grad.to(hidden.dtype)
            grad_hidden[rows] = linear(grad, matrix.t())
            grad_weight += weight_gradient(grad, hidden[rows])
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad, grad_weight * grad, None, None, None, None, None


def _divergences(logits: Tensor, teacher: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """The soft part of the mixture, summed over rows, and its gradient by `logits`. [n, V] twice -> [], [n, V]"""
    temperature, forward, reverse = mixture.temperature, 1 - mixture.reverse, mixture.reverse
    log_s, log_t = (logits / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    p, difference = log_s.exp(), log_s - log_t
    value, grad = logits.new_zeros(()), torch.zeros_like(logits)
    if forward > 0:
        q = log_t.exp()
        value -= forward * (q * difference).sum()
        grad += forward * (p - q)
    if reverse > 0:
        each = (p * difference).sum(-1, keepdim=True)
        value += reverse * each.sum()
        grad += reverse * p * (difference - each)
    soft = (1 - mixture.hard) * temperature
    return value * soft * temperature, grad.mul_(soft)


def distillation_sum(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    labels: Tensor,
    mixture: Mixture,
    chunk_size: int = 512,
) -> Tensor:
    """The mixture's loss summed over labelled tokens, in nats; gradients for `hidden` and `weight` only.

    hidden [..., C], weight [V, C], those of the teacher likewise with its own C, labels [...] with -100 where there is
    nothing to learn. At most [chunk_size, V] logits of each model exist at a time. Differentiable once.
    """
    valid = labels.flatten() != IGNORE
    hidden, teacher_hidden = (h.flatten(0, -2)[valid] for h in (hidden, teacher_hidden))
    labels = labels.flatten()[valid]
    return _ChunkedDistillation.apply(hidden, weight, teacher_hidden, teacher_weight, labels, mixture, chunk_size)


@dataclass
class Distillation(Objective):
    """A decoder learns from a larger or longer trained one with the same vocabulary.

    A share `on_policy` of the batches is text that the student goes on with by itself, `sample(prompts [B, P], tokens)
    -> ids [B, P + tokens]`, where only the teacher has an answer (GKD, arXiv:2306.13649). Held-out loss is the plain
    cross-entropy.
    """

    teacher: Decoder
    mixture: Mixture = Mixture()
    chunk_size: int = 512
    on_policy: float = 0.0
    sample: Callable[[Tensor, int], Tensor] | None = None

    name = "distillation"
    architectures = ("decoder",)
    reason = "student and teacher predict the next token"

    def __post_init__(self) -> None:
        if self.on_policy > 0 and self.sample is None:
            raise UsageError("distillation on-policy needs `sample`, the function that continues prompts")
        self.teacher.requires_grad_(False).eval()

    def batch(self, window: Window, generator: torch.Generator) -> Batch:
        if self.sample is None or float(torch.rand((), generator=generator)) >= self.on_policy:
            return Batch(*window)
        length = window[0].shape[1]
        prompt = max(1, length // 4)
        ids = self.sample(window[0][:, :prompt], length + 1 - prompt)
        labels = ids[:, 1:].clone()
        labels[:, : prompt - 1] = IGNORE
        return Batch(ids[:, :-1], labels, sampled=True)

    def sum(self, model: Any, batch: Batch) -> Tensor:
        hidden, weight = model.hidden(batch.input_ids), model.lm_head.weight
        if not torch.is_grad_enabled():
            return cross_entropy_sum(hidden, weight, batch.labels, self.chunk_size)
        if weight.shape[0] != self.teacher.lm_head.weight.shape[0]:
            raise UsageError(
                f"the teacher predicts {self.teacher.lm_head.weight.shape[0]:,} ids, the student {weight.shape[0]:,}: "
                "they must share a vocabulary"
            )
        with torch.no_grad():
            teacher = self.teacher.hidden(batch.input_ids)
        mixture = Mixture(0.0, self.mixture.temperature, self.mixture.reverse) if batch.sampled else self.mixture
        return distillation_sum(
            hidden, weight, teacher, self.teacher.lm_head.weight, batch.labels, mixture, self.chunk_size
        )
