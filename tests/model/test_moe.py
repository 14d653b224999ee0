"""Router, experts and balance: the choice, what the bias may and may not do, auxiliary losses, loads."""

import dataclasses

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from qwq.kernels.experts import reference
from qwq.model import Decoder, ModelConfig, moe

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16,
    decoder_sparse_step=2, mlp_only_layers=(0,), router_bias_update_rate=0.01, initializer_range=0.2,
)  # fmt: skip


def build(dtype=torch.float64, **changes) -> Decoder:
    model = Decoder(dataclasses.replace(CONFIG, **changes))
    model.init_weights(seed=0)
    return model.to(dtype)


def router(**changes) -> moe.Router:
    (found,) = (r for _, r in moe.routers(build(**changes)))
    return found


def test_layers_have_experts_by_qwens_rule():
    assert [name for name, _ in moe.routers(build())] == ["model.layers.1"]
    everywhere = build(decoder_sparse_step=1)
    assert [name for name, _ in moe.routers(everywhere)] == ["model.layers.1", "model.layers.2"]


@pytest.mark.parametrize("shared", [0, 40])
@pytest.mark.parametrize("act", ["silu", "relu", "relu2", "gelu"])
def test_a_layer_is_the_weighted_sum_of_its_experts(shared, act):
    layer = build(shared_expert_intermediate_size=shared, hidden_act=act).model.layers[1].mlp
    x = torch.randn(2, 17, 24, dtype=torch.float64)
    flat = x.flatten(0, 1)
    probabilities = (flat @ layer.gate.weight.T).softmax(-1)
    chosen = probabilities.topk(2).indices
    weights = probabilities.gather(-1, chosen)
    weights = weights / weights.sum(-1, keepdim=True)
    expected = reference(flat, layer.experts.gate_up_proj, layer.experts.down_proj, weights, chosen, layer.experts.act)
    if shared:
        expected = expected + torch.sigmoid(layer.shared_expert_gate(flat)) * layer.shared_expert(flat)
    torch.testing.assert_close(layer(x), expected.view_as(x), rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 50), st.integers(1, 6), st.integers(0, 100))
def test_every_token_has_all_of_its_experts(tokens, each, seed):
    """No capacity, nothing dropped: distinct experts, weights that sum to 1, and a load that counts every pair."""
    torch.manual_seed(seed)
    gate = router(num_experts_per_tok=each)
    weights, chosen = gate(torch.randn(tokens, 24, dtype=torch.float64))
    assert chosen.sort(-1).values.diff(dim=-1).ne(0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(tokens, dtype=torch.float64))
    assert gate.load.sum() == tokens * each


def test_the_bias_decides_who_is_chosen_and_nothing_else():
    gate, x = router(), torch.randn(40, 24, dtype=torch.float64)
    _, before = gate(x)
    gate.e_score_correction_bias[3] = 2.0
    weights, chosen = gate(x)
    assert chosen.eq(3).any(-1).all()
    assert not before.eq(3).any(-1).all()
    probabilities = (x @ gate.weight.T).softmax(-1).gather(-1, chosen)
    torch.testing.assert_close(weights, probabilities / probabilities.sum(-1, keepdim=True))
    weights.sum().backward()
    assert gate.e_score_correction_bias.grad is None


def test_weights_stay_weights_where_the_bias_chooses_what_the_router_would_never():
    """Probabilities of 0 in fp32: their sum is 0 too, and a weight of 0 / 0 once ended a training run."""
    gate = router().float()
    gate.weight.data *= 1000
    gate.e_score_correction_bias[:3] = 5.0
    weights, chosen = gate(torch.randn(40, 24))
    assert chosen.max() < 3
    torch.testing.assert_close(weights.sum(-1), torch.ones(40))
    weights.square().sum().backward()
    assert gate.weight.grad.isfinite().all()


def test_the_bias_rises_for_who_had_too_little_and_falls_for_who_had_too_much():
    model = build()
    ((name, gate),) = moe.routers(model)
    gate.load = torch.tensor([10, 2, 4, 4, 4, 0])
    loads = moe.update_balance(model)
    assert loads[name].tolist() == pytest.approx([10 / 24, 2 / 24, 4 / 24, 4 / 24, 4 / 24, 0])
    assert gate.e_score_correction_bias.tolist() == pytest.approx([-0.01, 0.01, 0, 0, 0, 0.01])
    assert moe.update_balance(model) == {}  # nothing has been routed since
    assert gate.e_score_correction_bias.tolist() == pytest.approx([-0.01, 0.01, 0, 0, 0, 0.01])


def test_balance_evens_out_the_load_of_a_fixed_router():
    model = build(router_bias_update_rate=0.004)
    ((name, gate),) = moe.routers(model)
    x = torch.randn(2000, 24, dtype=torch.float64) + 0.5
    loads = []
    for _ in range(200):
        gate(x)
        loads.append(moe.update_balance(model)[name])
    assert loads[0].max() > 1.5 / 6
    assert loads[-1].max() < 1.15 / 6


def test_what_is_not_learned_from_is_not_counted():
    model = build()
    with torch.no_grad():
        model(torch.randint(64, (1, 20)))
    assert moe.take_loads(model) == {}
    model(torch.randint(64, (1, 20)))
    model(torch.randint(64, (1, 12)))
    (load,) = moe.take_loads(model).values()
    assert float(load.sum()) == pytest.approx(1)


def test_the_auxiliary_loss_is_that_of_transformers():
    x = torch.randn(50, 24, dtype=torch.float64)
    model = build(router_aux_loss_coef=0.3, router_bias_update_rate=0.0)
    ((_, gate),) = moe.routers(model)
    gate(x)
    logits = x @ gate.weight.T
    expected = transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func((logits,), 6, 2)
    torch.testing.assert_close(moe.auxiliary_loss(model).float(), 0.3 * expected)
    assert moe.auxiliary_loss(model) is None  # taken once


def test_the_z_loss_is_the_mean_square_of_the_log_of_the_sum():
    x = torch.randn(50, 24, dtype=torch.float64)
    model = build(router_z_loss_coef=0.2)
    ((_, gate),) = moe.routers(model)
    gate(x)
    expected = 0.2 * (x @ gate.weight.T).exp().sum(-1).log().square().mean()
    torch.testing.assert_close(moe.auxiliary_loss(model), expected)


def test_without_coefficients_there_is_no_auxiliary_loss():
    model = build()
    model(torch.randint(64, (1, 20)))
    assert moe.auxiliary_loss(model) is None


def test_the_auxiliary_loss_moves_the_router_towards_an_even_load():
    model = build(router_aux_loss_coef=1.0, router_bias_update_rate=0.0)
    ((name, gate),) = moe.routers(model)
    x, loads = torch.randn(500, 24, dtype=torch.float64) + 0.5, []
    for _ in range(60):
        gate(x)
        (gradient,) = torch.autograd.grad(moe.auxiliary_loss(model), gate.weight)
        gate.weight.data -= 0.2 * gradient
        loads.append(moe.take_loads(model)[name].max())
    assert loads[-1] < 0.8 * loads[0]


def test_the_router_computes_in_fp32_in_a_bf16_model():
    gate = router().to(torch.bfloat16)
    x = torch.randn(30, 24, dtype=torch.bfloat16)
    weights, chosen = gate(x)
    exact = (x.float() @ gate.weight.float().T).softmax(-1)
    assert weights.dtype == torch.bfloat16
    assert torch.equal(chosen, exact.topk(2).indices)


def test_a_model_with_experts_learns_in_every_parameter():
    model = build(torch.float32, shared_expert_intermediate_size=16, decoder_sparse_step=1, mlp_only_layers=())
    ids = torch.randint(64, (4, 40))
    F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    for name, parameter in model.named_parameters():
        if name.endswith("e_score_correction_bias"):
            assert not parameter.requires_grad
            continue
        stacked = parameter.grad.flatten(1) if parameter.ndim == 3 else parameter.grad.flatten()[None]
        assert stacked.ne(0).any(-1).all(), name
