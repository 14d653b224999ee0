"""Experts grown from a dense model: the same function before the first step, a checkpoint like any other."""

import dataclasses

import pytest
import torch

from qwq.checkpoint import load, native
from qwq.checkpoint.upcycle import upcycle
from qwq.errors import UsageError
from qwq.model import Decoder, moe


@pytest.mark.parametrize(("experts", "each", "step"), [(4, 2, 1), (6, 3, 2), (2, 1, 1)])
@torch.no_grad()
def test_at_step_zero_the_function_is_unchanged(checkpoint, experts, each, step):
    exact = Decoder(checkpoint.config).double()
    exact.load_state_dict(checkpoint.model.state_dict())
    dense = dataclasses.replace(checkpoint, model=exact)
    grown = upcycle(dense, experts, num_experts_per_tok=each, decoder_sparse_step=step)
    assert sum(1 for _ in moe.routers(grown.model)) == checkpoint.config.num_hidden_layers // step
    assert sum(p.numel() for p in grown.model.parameters()) == grown.config.num_parameters()
    ids = torch.randint(checkpoint.config.vocab_size, (2, 50))
    torch.testing.assert_close(grown.model(ids), exact(ids), rtol=1e-12, atol=1e-12)


def test_experts_move_apart_and_the_dense_model_stays(checkpoint):
    grown = upcycle(checkpoint, 4)
    before = {name: p.clone() for name, p in checkpoint.model.named_parameters()}
    grown.model.train()(torch.randint(checkpoint.config.vocab_size, (2, 50))).square().mean().backward()
    gradient = grown.model.model.layers[0].mlp.experts.down_proj.grad
    assert not torch.allclose(gradient[0], gradient[1])
    with torch.no_grad():
        for parameter in grown.model.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(p, before[name]) for name, p in checkpoint.model.named_parameters())


def test_it_is_saved_and_read_with_its_bias(checkpoint, tmp_path):
    grown = upcycle(checkpoint, 4, seed=3)
    with torch.no_grad():
        next(moe.routers(grown.model))[1].e_score_correction_bias[2] = 0.25
    native.save(tmp_path / "grown", grown.model, grown.tokenizer, {"name": "grown"})
    again = load(tmp_path / "grown")
    assert again.config == grown.config
    tensors = again.model.state_dict()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in grown.model.state_dict().items())
    assert not next(moe.routers(again.model))[1].e_score_correction_bias.requires_grad


def test_what_cannot_be_upcycled_is_refused(checkpoint):
    with pytest.raises(UsageError, match="it has experts"):
        upcycle(upcycle(checkpoint, 4), 4)
    with pytest.raises(UsageError, match="num_experts"):
        upcycle(checkpoint, 1)
