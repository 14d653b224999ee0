"""What `--dry-run` and `qwq plan` count is what a real step holds."""

import dataclasses
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qwq.kernels import experts
from qwq.model import ModelConfig, build
from qwq.recipe import DataConfig, ObjectiveConfig, Recipe, TrainingConfig
from qwq.train import optim, plan
from qwq.train.gradients import build_objective, compute_gradients

DENSE = ModelConfig(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    use_qk_norm=True,
)
PATTERNS = ("local(128)+global(64)+random(1)", "local(64)+global(64)+learnable(2)")
EXPERTS = {"num_experts": 8, "moe_intermediate_size": 256, "decoder_sparse_step": 2, "router_bias_update_rate": 0.001}
MODELS = {
    "dense": DENSE,
    "full heads, no norm of heads": dataclasses.replace(DENSE, num_key_value_heads=4, use_qk_norm=False),
    "experts": dataclasses.replace(DENSE, **EXPERTS),
    "sparse": dataclasses.replace(DENSE, attention_patterns=PATTERNS),
    "exits": dataclasses.replace(DENSE, exit_layers=(0, 1)),
    "all": dataclasses.replace(DENSE, attention_patterns=PATTERNS, exit_layers=(0, 1), **EXPERTS),
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every tensor that is alive, from the storages that operators return."""

    def __init__(self, *held: torch.Tensor):
        super().__init__()
        self.sizes: dict[int, int] = {}
        for tensor in held:
            self.note(tensor)
        self.peak = self.now

    @property
    def now(self) -> int:
        return sum(self.sizes.values())

    def note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self.sizes.pop, storage._cdata)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor)
        self.peak = max(self.peak, self.now)
        return out


def recipe_of(model: ModelConfig) -> Recipe:
    objective = ObjectiveConfig(chunk_size=256, early_exit_loss_coef=0.1 if model.exit_layers else 0.0)
    training = TrainingConfig(batch_size=4, micro_batch_size=2)
    return Recipe(model=model, data=DataConfig(seq_len=512), objective=objective, training=training)


@pytest.mark.parametrize("name", MODELS)
def test_memory_of_a_step_is_as_planned(name):
    """Weights and optimizer state to the byte; activations, and the peak of a step of two micro-batches, within 10 %."""
    recipe = recipe_of(MODELS[name])
    planned = plan.memory_bytes(recipe)
    model, objective = build(recipe.model), build_objective(recipe)
    model.init_weights(0)
    optimizers = optim.build(model, recipe.training)

    def batch():
        ids = torch.randint(recipe.model.vocab_size, (2, recipe.data.seq_len))
        return ids, ids

    def step():
        compute_gradients(model, [batch(), batch()], objective)
        optim.clip(list(model.parameters()), 1.0)
        optim.update(optimizers, 0.1)

    step()  # optimizers make their state at their first step
    states = [s for o in optimizers for state in o.state.values() for s in state.values() if s.ndim > 0]
    assert sum(4 * s.numel() for s in states) == planned["optimizer"]
    assert sum(4 * p.numel() for p in model.parameters()) == planned["weights"]
    with LiveBytes(*model.parameters(), *states) as live:
        before = live.now
        loss = objective.loss(model, objective.batch(batch(), torch.Generator()))
        kept = live.now - before
        del loss
        step()
    # What the loss keeps: states and their gradients, and the gradient of the output matrix.
    around = plan.head_bytes(recipe, 1024) - 4 * recipe.model.vocab_size * (recipe.model.hidden_size + 2 * 256)
    assert kept == pytest.approx(planned["activations"] + around, rel=0.1)
    assert live.peak == pytest.approx(sum(planned.values()), rel=0.1)


def test_experts_of_a_gpu_keep_what_is_planned_for_them():
    """The form that a GPU takes, torch's grouped product, here in fp32."""
    config = dataclasses.replace(MODELS["experts"], moe_intermediate_size=384)
    x, chosen = torch.randn(512, 128, requires_grad=True), torch.randint(8, (512, 2))
    gate_up, down = torch.randn(8, 768, 128, requires_grad=True), torch.randn(8, 128, 384, requires_grad=True)
    weights = torch.rand(512, 2, requires_grad=True)
    with LiveBytes(x, chosen, gate_up, down, weights) as live:
        before = live.now
        out = experts.grouped(x, gate_up, down, weights, chosen, torch.nn.functional.silu)
        kept = live.now - before - 4 * out.numel()
    fused, grouped = (plan.block_activations(config, 1, gpu=gpu)[1] for gpu in (False, True))
    planned = 4 * 512 * (grouped - fused + 2 * 2 * 384)
    assert kept == pytest.approx(planned, rel=0.1)


def test_a_dry_run_shows_total_and_active_parameters():
    config = MODELS["experts"]
    shown = plan.dry_run(recipe_of(config))["parameters"]
    one = 3 * config.hidden_size * config.moe_intermediate_size
    assert shown["total"] - shown["active"] == 2 * 6 * one  # two layers with experts, six of eight experts unused
    assert shown["total"] == sum(p.numel() for p in build(config).parameters())
