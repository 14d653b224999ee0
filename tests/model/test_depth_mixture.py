"""Mixture-of-depths: the best tokens in training, each by its own score in decoding, the same with and without a cache."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from test_depth import CONFIG, build

from qwq.model import Decoder, KVCache, ModelConfig
from qwq.model.depth import MixtureOfDepthsBlock, auxiliary_loss, flops_of_token

MIXED = {"exit_layers": (), "mod_layers": (1, 2), "mod_capacity": 0.4}
IDS = torch.randint(97, (3, 15), generator=torch.Generator().manual_seed(6))


def mixed(**changes):
    """Routers that send about half of the tokens through."""
    model = build(**{**MIXED, **changes})
    with torch.no_grad():
        for layer in model.model.layers:
            if isinstance(layer, MixtureOfDepthsBlock):
                layer.mod_router.weight.normal_(0, 1, generator=torch.Generator().manual_seed(1))
    return model.eval()


def shares(model, ids):
    """Of the tokens, how many go through each mixed block."""
    found = []
    for layer in model.model.layers:
        if isinstance(layer, MixtureOfDepthsBlock):
            layer.mod_router.register_forward_hook(
                lambda _, __, scores: found.append(float((scores > 0).float().mean()))
            )
    model(ids)
    return found


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"attention_bias": True}, {"position_embedding": "sinusoidal"}])
def test_decoding_with_a_cache_equals_one_forward_pass(changes):
    """Rows of different lengths, chunks of different sizes, then token by token."""
    model = mixed(**changes)
    assert all(0.2 < share < 0.8 for share in shares(model, IDS))
    expected, cache = model(IDS), KVCache(model.config, 3, torch.float64)
    for row, length in enumerate((1, 9, 4)):
        for start, stop in pairwise((0, (length + 1) // 2, length) if length > 1 else (0, length)):
            got = model(IDS[row : row + 1, start:stop], cache=cache.rows(row, row + 1))
            torch.testing.assert_close(got[0], expected[row, start:stop], rtol=1e-11, atol=1e-12)
    for _ in range(6):
        places = torch.tensor(cache.lengths)
        got = model(IDS.gather(1, places[:, None]), cache=cache.rows(0, 3))[:, 0]
        torch.testing.assert_close(got, expected[torch.arange(3), places], rtol=1e-11, atol=1e-12)


@torch.no_grad()
def test_a_later_token_does_not_change_an_earlier_one_unless_gradients_are_taken():
    model, longer = mixed(), torch.cat((IDS, IDS.flip(1)), dim=1)
    torch.testing.assert_close(model(longer)[:, :15], model(IDS), rtol=1e-11, atol=1e-12)
    with torch.enable_grad():
        assert not torch.allclose(model.train()(longer)[:, :15], model(IDS))


@torch.no_grad()
def test_packed_documents_decode_as_each_alone():
    model = mixed()
    packed = model.hidden(IDS.view(1, -1), boundaries=[0, 15, 30, 45])
    torch.testing.assert_close(packed.view(3, 15, -1), model.hidden(IDS), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("boundaries", [None, [0, 4, 5, 15]])
def test_training_takes_the_best_and_leaves_the_others_as_they_were(boundaries):
    """Against a loop: the chosen tokens of each document through the plain block, in order."""
    model = mixed(num_hidden_layers=2, mod_layers=(1,)).train()
    block = model.model.layers[1]
    x, tokens = model.model.begin(IDS[:1], causal=True, boundaries=boundaries)
    got = block(x, tokens)
    scores = block.mod_router(x)[0, :, 0]
    chosen = sorted(scores.topk(6).indices.tolist())  # 0.4 of 15
    expected = x.clone()
    for start, stop in pairwise(boundaries or [0, 15]):
        of_document = [i for i in chosen if start <= i < stop]
        if of_document:
            at = torch.tensor(of_document)
            _, alone = model.model.begin(IDS[:1, : len(at)], causal=True)
            alone.positions = tokens.positions[:, at]
            alone.rope = model.model.rotary(alone.positions, x.dtype)
            through = super(MixtureOfDepthsBlock, block).forward(x[:, at], alone)
            expected[:, at] = x[:, at] + scores[at, None].sigmoid() * (through - x[:, at])
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


def test_the_loss_teaches_the_router_to_choose_as_in_training():
    """Its gradient reaches the router alone, and following it makes both choices agree."""
    model = mixed().train()
    optimizer, agreement = torch.optim.Adam(model.parameters(), lr=0.05), []
    for _ in range(60):
        model(IDS)
        auxiliary_loss(model).backward()
        assert {name.split(".")[-2] for name, p in model.named_parameters() if p.grad is not None} == {"mod_router"}
        optimizer.step()
        optimizer.zero_grad()
        agreement.append(shares(model.eval(), IDS)[0])
        model.train()
    assert abs(agreement[-1] - 0.4) < 0.1
    assert auxiliary_loss(model) is None


def test_it_is_counted():
    model = mixed()
    assert sum(p.numel() for p in model.parameters()) == model.config.num_parameters()
    plain = dataclasses.replace(model.config, mod_layers=())
    saved = plain.flops_per_token(100) - model.config.flops_per_token(100)
    assert saved == pytest.approx(2 * 0.6 * plain.layer_flops(1, 100), rel=0.02)
    assert flops_of_token(model.config, 4, 100) == model.config.flops_per_token(100)


def test_only_a_decoder_that_attends_densely_has_them():
    with pytest.raises(ValueError, match="only a decoder"):
        dataclasses.replace(CONFIG, architecture="encoder", mod_layers=(1,))
    with pytest.raises(ValueError, match="layer 1 must attend densely"):
        dataclasses.replace(CONFIG, attention_patterns=("dense", "local(8)"), mod_layers=(1,))
    with pytest.raises(ValueError, match="mod_capacity"):
        Decoder(ModelConfig(mod_capacity=1.5))
