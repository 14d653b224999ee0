"""The two arms of the comparison are of one size, and both learn."""

import dataclasses

import pytest
import torch

from qwq.bench import nano, runs

transformers = pytest.importorskip("transformers", reason="the peer is not installed")


@pytest.fixture
def recipe(tiny_config):
    recipe = nano.dense()
    training = dataclasses.replace(recipe.training, batch_size=2, micro_batch_size=2)
    data = dataclasses.replace(recipe.data, seq_len=32)
    return dataclasses.replace(recipe, model=tiny_config, training=training, data=data)


def test_peer_is_of_the_same_size():
    """Within half a percent: biases against norms of heads."""
    config = nano.dense().model
    values = {k: v for k, v in nano.peer_config(config).items() if k != "architectures"}
    with torch.device("meta"):
        peer = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**values))
    assert peer.num_parameters() == pytest.approx(config.num_parameters(), rel=0.005)


@pytest.mark.parametrize("arm", ["qwq", "peer"])
def test_an_arm_learns_one_batch_by_heart(arm, recipe):
    """20 steps on the same tokens; the peer's loss is the plain one, ours the chunked one."""
    torch.manual_seed(0)
    made = runs.ours(recipe, 0) if arm == "qwq" else nano._peer(recipe, 0, learning_rate=1e-2, sequences=2)
    ids = torch.randint(recipe.model.vocab_size, (2, 32))
    losses = [made.step([(ids, ids.roll(-1, 1))], step / 20) for step in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    assert made.scored.hidden(ids).shape == (2, 32, recipe.model.hidden_size)
