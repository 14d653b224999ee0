"""Recorded losses of a tiny run: a change of the arithmetic shows here first."""

import json
import os
from pathlib import Path

import pytest
import torch

from qwq.model import Decoder, ModelConfig
from qwq.objectives import CausalLM
from qwq.recipe import TrainingConfig
from qwq.train import optim
from qwq.train.gradients import compute_gradients

GOLDEN = Path(__file__).parent.parent / "golden" / "train_tiny.json"
STEPS = 30


def losses(optimizer: str) -> list[float]:
    """30 steps on sequences that count upwards from a random id: learnable, and made without a tokenizer."""
    config = ModelConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        use_qk_norm=True,
    )
    training = TrainingConfig(steps=STEPS, optimizer=optimizer, learning_rate=1e-2, batch_size=4, micro_batch_size=4)
    model = Decoder(config)
    model.init_weights(seed=0, zero_residual=True)
    optimizers = optim.build(model, training)
    generator = torch.Generator().manual_seed(0)
    found = []
    for step in range(STEPS):
        first = torch.randint(97, (4, 1), generator=generator)
        ids = (first + torch.arange(33)) % 97
        found.append(compute_gradients(model, [(ids[:, :-1], ids[:, 1:])], CausalLM(50)))
        optim.clip(list(model.parameters()), training.max_grad_norm)
        optim.update(optimizers, optim.learning_rate_factor(step, training))
    return found


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_losses_are_the_recorded_ones(optimizer):
    """Within 1 %: libraries differ in the last bits, and training spreads them. QWQ_RECORD_GOLDEN=1 records anew."""
    now = losses(optimizer)
    if os.environ.get("QWQ_RECORD_GOLDEN"):
        recorded = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
        GOLDEN.write_text(json.dumps(recorded | {optimizer: [round(x, 6) for x in now]}, indent=1) + "\n")
        pytest.skip(f"recorded {GOLDEN.name}")
    assert now == pytest.approx(json.loads(GOLDEN.read_text())[optimizer], rel=0.01)
    assert now[-1] < 0.5 * now[0]
