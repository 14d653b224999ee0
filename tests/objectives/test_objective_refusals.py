"""An objective on an assembly it makes no sense for: one sentence, before any work."""

import dataclasses

import pytest
import torch

from qwq.errors import UsageError
from qwq.model import Decoder, Encoder, build
from qwq.objectives import CausalLM, MaskedLM, NextSentence
from qwq.recipe import ObjectiveConfig, Recipe
from qwq.train.gradients import build_objective

FITS = {
    "causal_lm": {"decoder"},
    "masked_lm": {"encoder"},
    "next_sentence": {"encoder"},
    "sentence_order": {"encoder"},
    "late_interaction": {"encoder"},
    "contrastive": {"encoder"},
    "span_denoising": {"encoder-decoder"},
    "prefix_lm": {"encoder-decoder"},
}


def with_architecture(config, architecture):
    layers = 1 if architecture == "encoder-decoder" else 0
    return dataclasses.replace(config, architecture=architecture, num_encoder_layers=layers, vocab_size=576)


@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("architecture", ["decoder", "encoder", "encoder-decoder"])
def test_a_recipe_is_refused_unless_objective_and_assembly_fit(name, architecture, tiny_config, tokenizer):
    recipe = Recipe(model=with_architecture(tiny_config, architecture), objective=ObjectiveConfig(name=name))
    if architecture in FITS[name]:
        assert build_objective(recipe, tokenizer).name == name
        return
    with pytest.raises(UsageError, match=f"objective {name} makes no sense for architecture '{architecture}': "):
        build_objective(recipe, tokenizer)


def test_objects_refuse_too(tiny_config, vocabulary, window, generator):
    """Whoever puts model and objective together by hand reads the same sentence."""
    decoder = Decoder(tiny_config)
    for objective in (MaskedLM(vocabulary), NextSentence(vocabulary)):
        with pytest.raises(UsageError, match="makes no sense"):
            objective.loss(decoder, objective.batch(window, generator))
    encoder = build(with_architecture(tiny_config, "encoder"))
    assert isinstance(encoder, Encoder)
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(UsageError, match="sees the one that it should predict"):
        CausalLM().loss(encoder, CausalLM().batch((ids, ids), generator))


def test_distillation_without_a_teacher_is_refused():
    with pytest.raises(UsageError, match=r"set objective\.teacher"):
        build_objective(Recipe(objective=ObjectiveConfig(name="distillation")))


@pytest.mark.parametrize(("field", "value"), [("mask_fraction", 1.5), ("temperature", 0.0), ("reverse_kl", -0.1)])
def test_a_number_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(UsageError, match=field):
        Recipe.from_dict({"objective": {field: value}})
