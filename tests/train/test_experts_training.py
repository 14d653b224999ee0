"""Training with experts: loads in the log, a bias that only balance moves, resuming, optimizers, who does what."""

import dataclasses
import json
import math
import shutil

import pytest
import torch

from qwq.checkpoint import native
from qwq.data.loader import PackedLoader
from qwq.model import Decoder, moe
from qwq.objectives import CausalLM
from qwq.train import optim, train
from qwq.train.gradients import compute_gradients
from qwq.train.specialisation import expert_load_by_domain, mutual_information
from qwq.train.start import compile_blocks


@pytest.fixture(scope="module")
def config(tiny_config):
    return dataclasses.replace(
        tiny_config, num_experts=4, moe_intermediate_size=64, router_bias_update_rate=0.01, router_aux_loss_coef=0.01
    )


@pytest.fixture
def moe_recipe(recipe, config):
    return dataclasses.replace(recipe, model=config, training=dataclasses.replace(recipe.training, steps=30))


def test_a_broken_off_run_resumes_bit_for_bit_with_its_balance_and_logs_every_load(
    moe_recipe, corpus, tokenizer, tmp_path, monkeypatch
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(moe_recipe, corpus, tokenizer, whole)
    left, update = iter(range(17)), moe.update_balance

    def break_off(model):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return update(model)

    with monkeypatch.context() as patch:
        patch.setattr(moe, "update_balance", break_off)
        with pytest.raises(KeyboardInterrupt):
            train(moe_recipe, corpus, tokenizer, broken)
    train(moe_recipe, corpus, tokenizer, broken, resume=True)
    newest = [native.newest(out) for out in (whole, broken)]
    for name in ("model.safetensors", "training.safetensors", "training.json"):
        assert (newest[0] / name).read_bytes() == (newest[1] / name).read_bytes(), name
    bias = next(moe.routers(native.load_model(newest[1])[1]))[1].e_score_correction_bias
    assert bias.any()
    lines = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 31))
    for line in steps:
        assert list(line["load"]) == ["model.layers.0", "model.layers.1"]
        assert all(len(load) == 4 and math.isclose(sum(load), 1, abs_tol=1e-3) for load in line["load"].values())


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_optimizers_have_every_parameter_once_and_never_the_bias(moe_recipe, config, optimizer):
    model = Decoder(config)
    model.init_weights(seed=0)
    optimizers = optim.build(model, dataclasses.replace(moe_recipe.training, optimizer=optimizer))
    held = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    wanted = {name: p for name, p in model.named_parameters() if not name.endswith("e_score_correction_bias")}
    assert sorted(map(id, held)) == sorted(map(id, wanted.values()))
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids = torch.randint(config.vocab_size, (4, 30))
    compute_gradients(model, [(ids[:2], ids[:2]), (ids[2:], ids[2:])], CausalLM())
    optim.update(optimizers, 1.0)
    assert all(torch.equal(p, before[name]) != (name in wanted) for name, p in model.named_parameters())
    moe.update_balance(model)
    for _, router in moe.routers(model):
        bias = router.e_score_correction_bias
        torch.testing.assert_close(bias, 0.01 * bias.sign())


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")
def test_compiled_blocks_with_experts_give_the_same_gradients_and_loads(config):
    config = dataclasses.replace(config, num_hidden_layers=1)
    ids, results = torch.randint(config.vocab_size, (2, 40)), []
    for compiled in (False, True):
        model = Decoder(config)
        model.init_weights(seed=1)
        assert not compiled or compile_blocks(model)
        for _ in range(2):  # the second step meets a load that is already there
            compute_gradients(model, [(ids, ids)], CausalLM())
        loads = list(moe.take_loads(model).values())
        results.append([*loads, *(p.grad for p in model.parameters() if p.requires_grad)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_load_by_domain_counts_every_routed_token(config):
    model = Decoder(config)
    model.init_weights(seed=2)
    batches = {name: [torch.randint(config.vocab_size, (2, 30)) for _ in range(3)] for name in ("en", "zh", "code")}
    found = expert_load_by_domain(model, batches)
    assert found.load.shape == (2, 3, 4)
    assert found.domains == ["en", "zh", "code"]
    torch.testing.assert_close(found.load.sum(-1), torch.ones(2, 3))
    seen = []
    hook = model.model.layers[1].mlp.gate.register_forward_hook(lambda router, args, out: seen.append(out[1]))
    with torch.no_grad():
        for ids in batches["zh"]:
            model.hidden(ids)
    hook.remove()
    counts = torch.cat(seen).flatten().bincount(minlength=4)
    torch.testing.assert_close(found.load[1, 1], counts / counts.sum())
    assert expert_load_by_domain(Decoder(config.dense()), batches).bits == []
    assert moe.take_loads(model) == {}  # looking is not training


@pytest.mark.parametrize(
    ("load", "bits"),
    [
        ([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]], 0.0),
        ([[1.0, 0.0], [0.0, 1.0]], 1.0),
        ([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]], 1.0),
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], math.log2(3)),
        ([[0.75, 0.25], [0.25, 0.75]], 0.1887),
    ],
)
def test_mutual_information_in_bits(load, bits):
    assert mutual_information(torch.tensor(load)) == pytest.approx(bits, abs=1e-4)


def test_a_training_step_with_experts_learns(moe_recipe, corpus):
    """Fifty steps on the tiny corpus: the loss falls below that of knowing nothing, and no expert is idle."""
    model = Decoder(moe_recipe.model)
    model.init_weights(seed=0)
    optimizers = optim.build(model, moe_recipe.training)
    loader, losses = PackedLoader(corpus, 4, 32, 0), []
    for _ in range(50):
        losses.append(compute_gradients(model, [next(loader)], CausalLM()))
        optim.update(optimizers, 1.0)
        loads = moe.update_balance(model)
    assert losses[-1] < 0.7 * losses[0]
    assert all(load.min() > 0.02 for load in loads.values())
