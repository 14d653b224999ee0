"""The early-exit loss: the end's cross-entropy plus that of one exit, drawn by depth."""

import pytest
import torch
from torch.nn import functional as F

from qwq.errors import UsageError
from qwq.model import Decoder, ModelConfig
from qwq.objectives import Batch
from qwq.objectives.early_exit import loss_sum

CONFIG = ModelConfig(
    vocab_size=53, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, max_position_embeddings=64, initializer_range=0.2, exit_layers=(0, 1),
)  # fmt: skip
IDS = torch.randint(53, (2, 13), generator=torch.Generator().manual_seed(5))


def build(config=CONFIG):
    model = Decoder(config)
    model.init_weights(seed=1)
    return model.double(), Batch(IDS[:, :-1], IDS[:, 1:])


def plain(model, layers):
    logits = model.hidden(IDS[:, :-1], num_layers=layers) @ model.lm_head.weight.T
    return F.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten(), reduction="sum")


def test_the_mean_over_draws_weighs_each_exit_by_its_depth_with_its_gradient():
    """Exits after one and two layers: a third and two thirds of the draws."""
    model, batch = build()
    weight = model.model.layers[0].mlp.up_proj.weight
    generator = torch.Generator().manual_seed(2)
    draws = 600
    for _ in range(draws):
        (loss_sum(model, batch, early_exit_loss_coef=0.5, generator=generator) / draws).backward()
    mean, weight.grad = weight.grad, None
    (plain(model, 3) + 0.5 * (plain(model, 1) + 2 * plain(model, 2)) / 3).backward()
    torch.testing.assert_close(mean, weight.grad, rtol=0, atol=0.05 * float(weight.grad.abs().max()))


def test_one_call_is_the_end_and_one_exit_exactly():
    model, batch = build()
    possible = [float((plain(model, 3) + 0.5 * plain(model, layers)).detach()) for layers in (1, 2)]
    loss = float(loss_sum(model, batch, early_exit_loss_coef=0.5).detach())
    assert min(abs(loss - value) for value in possible) < 1e-9


def test_a_model_without_exits_is_refused_with_the_setting_to_change():
    model, batch = build(ModelConfig(vocab_size=53, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(UsageError, match="exit_layers"):
        loss_sum(model, batch, early_exit_loss_coef=1.0)
    assert loss_sum(model, batch, early_exit_loss_coef=0.0, layer_dropout=0.1) > 0
