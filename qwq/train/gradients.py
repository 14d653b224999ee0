"""The objective of a recipe, and the gradients of one step from as many micro-batches as it takes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from qwq.checkpoint import load
from qwq.errors import UsageError
from qwq.model import Decoder, depth, moe
from qwq.objectives import (
    Batch,
    CausalLM,
    Contrastive,
    Distillation,
    LateInteraction,
    MaskedLM,
    Mixture,
    NextSentence,
    Objective,
    PrefixLM,
    SentenceOrder,
    SpanDenoising,
    Vocabulary,
)
from qwq.recipe import ObjectiveConfig, Recipe
from qwq.tokenizer import Tokenizer


def build_objective(recipe: Recipe, tokenizer: Tokenizer | None = None) -> Objective:
    """The objective that a recipe names; all but causal_lm ask for the tokenizer.

    `UsageError` if it makes no sense for the recipe's model, or misses what it needs.
    """
    config = recipe.objective
    objective = _named(config, recipe.model.vocab_size, tokenizer)
    objective.check(recipe.model)
    return objective


def _named(config: ObjectiveConfig, vocab_size: int, tokenizer: Tokenizer | None) -> Objective:
    chunk = config.chunk_size
    if config.name == "causal_lm":
        return CausalLM(chunk, config.early_exit_loss_coef, config.layer_dropout)
    if config.name == "distillation":
        return Distillation(
            _teacher(config.teacher), Mixture(config.cross_entropy, config.temperature, config.reverse_kl), chunk
        )
    assert tokenizer is not None
    vocabulary = Vocabulary(tokenizer, vocab_size)
    if config.name == "masked_lm":
        return MaskedLM(vocabulary, config.mask_fraction, config.whole_words, chunk)
    if config.name == "span_denoising":
        return SpanDenoising(vocabulary, chunk, config.mask_fraction)
    if config.name == "prefix_lm":
        return PrefixLM(vocabulary, chunk)
    if config.name == "contrastive":
        return Contrastive(vocabulary, config.contrastive)
    pairs = {"next_sentence": NextSentence, "sentence_order": SentenceOrder, "late_interaction": LateInteraction}
    return pairs[config.name](vocabulary)


def _teacher(name: str) -> Decoder:
    if not name:
        raise UsageError("distillation needs a teacher: set objective.teacher to a model")
    teacher = load(name, device="cuda" if torch.cuda.is_available() else "cpu").model
    if not isinstance(teacher, Decoder):
        raise UsageError(f"objective.teacher {name} is no decoder; distillation needs one")
    return teacher


def precision(device: torch.device) -> AbstractContextManager:
    """bf16 products over fp32 weights on a GPU; plain fp32 on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


def compute_gradients(model: Any, batches: Sequence[tuple], objective: Objective) -> float:
    """Add to `.grad` the gradient of the mean loss over all labels of all micro-batches; returns that mean.

    Where the model has routers with an auxiliary loss, its gradient is added, and the mean returned is without it.

    Divided by the number of labels of the whole step, not batch by batch: every label weighs the same, however ragged
    they are and however the step is cut into micro-batches. A batch is a `Batch`, or just (input_ids, labels).
    """
    step = [Batch(*batch) for batch in batches]
    device = next(model.parameters()).device
    valid = max(1, sum(batch.labelled for batch in step))
    total = 0.0
    for batch in step:
        with precision(device):
            loss = objective.loss(model, batch)
            routers = [found for found in (moe.auxiliary_loss(model), depth.auxiliary_loss(model)) if found is not None]
            whole = loss + batch.labelled * sum(routers)
        (whole / valid).backward()
        total += float(loss.detach()) / valid
    return total
