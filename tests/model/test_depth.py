"""Exits read what a shallower model would, in one pass; layers that are left out are drawn as asked."""

import dataclasses

import pytest
import torch

from qwq.model import Decoder, ModelConfig
from qwq.model.depth import dropout_rates, exit_states

CONFIG = ModelConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=128, initializer_range=0.2, exit_layers=(0, 2),
)  # fmt: skip
IDS = torch.randint(97, (2, 11), generator=torch.Generator().manual_seed(5))


def build(**changes):
    model = Decoder(dataclasses.replace(CONFIG, **changes))
    model.init_weights(seed=1)
    return model.double()


def test_every_exit_is_the_model_cut_there():
    model = build()
    first, second, end = exit_states(model, IDS)
    assert torch.equal(first, model.hidden(IDS, num_layers=1))
    assert torch.equal(second, model.hidden(IDS, num_layers=3))
    assert torch.equal(end, model.hidden(IDS))


def test_exits_of_packed_documents_are_those_of_each_alone():
    model = build()
    packed = exit_states(model, IDS.view(1, -1), boundaries=[0, 11, 22])
    alone = exit_states(model, IDS)
    for one, other in zip(packed, alone, strict=True):
        torch.testing.assert_close(one.view_as(other), other, rtol=1e-12, atol=1e-12)


def test_the_first_layer_always_stays_and_the_last_goes_most_often():
    rates = dropout_rates(5, 0.4)
    assert (rates[0], rates[-1]) == (0.0, pytest.approx(0.4))
    assert rates == sorted(rates)
    assert dropout_rates(1, 0.4) == [0.0]


def test_layers_are_left_out_at_their_rate_and_by_seed():
    """Each layer adds its own mark here, so that the state says which ones ran."""
    model = build(exit_layers=())
    for index, layer in enumerate(model.model.layers):
        layer.forward = lambda x, tokens, mark=10.0**-index: x + mark
    model.model.norm.forward = lambda x: x
    model.model.embed_tokens.weight.data.zero_()

    def drawn(generator):
        [state] = exit_states(model, IDS[:1, :1], layer_dropout=0.6, generator=generator)
        return f"{state.flatten()[0]:.3f}"

    runs = [drawn(generator) for generator in [torch.Generator().manual_seed(0)] for _ in range(2000)]
    kept = [sum(run.replace(".", "")[layer] == "1" for run in runs) / 2000 for layer in range(4)]
    assert kept == pytest.approx([1 - rate for rate in dropout_rates(4, 0.6)], abs=0.04)
    assert drawn(torch.Generator().manual_seed(3)) == drawn(torch.Generator().manual_seed(3))
