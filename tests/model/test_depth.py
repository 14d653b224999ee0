"""Exits read what a shallower model would, in one pass; layers that are left out are drawn as asked."""

import dataclasses

import pytest
import torch

from qwq.model import Decoder, KVCache, ModelConfig
from qwq.model.depth import dropout_rates, exit_states, filling_flops, flops_of_token, leave_early

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


def replay(model, ids, depths):
    """Logits of the last token without a cache, where token t went through depths[t] layers and then stayed as it was."""
    x, tokens = model.model.begin(torch.tensor([ids]), causal=True)
    for index, layer in enumerate(model.model.layers):
        left = torch.tensor([depth <= index for depth in depths])[None, :, None]
        x = torch.where(left, x, layer(x, tokens))
    return model.lm_head(model.model.norm(x))[0, -1]


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_patterns": ("local(8)+learnable(1)", "dense"), "attention_block_size": 4}, {"use_qk_norm": True}],
)
def test_a_token_that_left_early_is_seen_in_all_layers_as_it_left(changes):
    model = build(exit_layers=(0, 1, 2), **changes).eval()
    ids, depths, sure_enough = IDS[0, :5].tolist(), [4] * 5, 0.1
    cache = KVCache(model.config, 1, torch.float64)
    model(torch.tensor([ids]), cache=cache.rows(0, 1))
    for token in range(0, 75, 3):
        ids.append(token)
        logits, depth = leave_early(model, torch.tensor([ids[-1:]]), cache.rows(0, 1), sure_enough)
        depths.append(depth)
        torch.testing.assert_close(logits[0, 0], replay(model, ids, depths), rtol=1e-11, atol=1e-12)
        sure = [float(replay(model, ids, [*depths[:-1], d]).softmax(-1).max()) >= sure_enough for d in (1, 2, 3)]
        assert depth == [*(d for d in (1, 2, 3) if sure[d - 1]), 4][0]
    assert cache.lengths == [30]
    assert len(set(depths[5:])) > 2


@torch.no_grad()
def test_no_confidence_is_the_first_exit_and_more_than_can_be_is_the_end():
    model = build().eval()
    cache = KVCache(model.config, 1, torch.float64)
    model(IDS[:1, :4], cache=cache.rows(0, 1))
    assert leave_early(model, IDS[:1, 4:5], cache.rows(0, 1), 0.0)[1] == 1
    cache = KVCache(model.config, 1, torch.float64)
    model(IDS[:1, :4], cache=cache.rows(0, 1))
    logits, depth = leave_early(model, IDS[:1, 4:5], cache.rows(0, 1), 1.1)
    assert depth == 4
    torch.testing.assert_close(logits, model(IDS[:1, :5])[:, -1:], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "changes", [{}, {"num_experts": 4, "moe_intermediate_size": 16, "decoder_sparse_step": 2}, {"gated_mlp": False}]
)
def test_the_cost_of_all_layers_is_the_configs(changes):
    config = dataclasses.replace(CONFIG, **changes)
    assert flops_of_token(config, 4, 77) == config.flops_per_token(77)
    each = [flops_of_token(config, layers, 77) for layers in range(5)]
    assert each == sorted(each)
    assert flops_of_token(config, 2, 77, heads=3) - each[2] == 2 * (each[0])
    assert filling_flops(config, 4) == 0
    assert 0 < filling_flops(config, 1) < each[4] - each[1]
