"""The loop: what it writes, what it refuses, and that a step does not depend on how it is cut."""

import dataclasses
import json

import pytest
import torch

from qwq.errors import QwqError, UsageError
from qwq.model import Decoder
from qwq.objectives import CausalLM
from qwq.train import optim, start, train
from qwq.train.gradients import compute_gradients


def short(recipe, **training):
    return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, steps=4, **training))


def ragged(rows, tokens, vocabulary, seed):
    """Random ids, and labels of which every row keeps another number."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (rows, tokens), generator=generator)
    labels = torch.randint(vocabulary, (rows, tokens), generator=generator)
    for row in range(rows):
        labels[row, : (row * 5) % tokens] = -100
    return ids, labels


def gradients(config, batches):
    model = Decoder(config).double()
    model.init_weights(seed=3)
    loss = compute_gradients(model, batches, CausalLM(7))
    return loss, [p.grad for p in model.parameters()]


def test_accumulated_gradients_equal_one_big_batch(tiny_config):
    """With ragged labels too: every labelled token weighs the same, in whichever micro-batch it is."""
    ids, labels = ragged(8, 24, tiny_config.vocab_size, seed=0)
    whole_loss, whole = gradients(tiny_config, [(ids, labels)])
    for cut in (1, 2, [1, 4, 3]):
        parts = list(zip(ids.split(cut), labels.split(cut), strict=True))
        loss, accumulated = gradients(tiny_config, parts)
        assert loss == pytest.approx(whole_loss, rel=1e-12)
        for a, b in zip(accumulated, whole, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_loss_is_the_mean_over_labelled_tokens(tiny_config):
    """Against F.cross_entropy on all logits at once."""
    ids, labels = ragged(6, 20, tiny_config.vocab_size, seed=1)
    loss, grads = gradients(tiny_config, [(ids[:2], labels[:2]), (ids[2:], labels[2:])])
    model = Decoder(tiny_config).double()
    model.init_weights(seed=3)
    plain = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), ignore_index=-100)
    plain.backward()
    assert loss == pytest.approx(plain.item(), rel=1e-12)
    for a, p in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad, rtol=1e-9, atol=1e-12)


def test_a_step_without_any_label_changes_nothing(tiny_config):
    """Loss 0 and gradients 0, not a division by zero."""
    ids = torch.zeros(2, 8, dtype=torch.long)
    loss, grads = gradients(tiny_config, [(ids, torch.full_like(ids, -100))])
    assert loss == 0
    assert all(not g.any() for g in grads)


def test_run_learns_and_leaves_recipe_metrics_and_checkpoints(recipe, corpus, tokenizer, tmp_path):
    """The loss falls below that of guessing; every step has a line; the checkpoint generates the same recipe."""
    result = train(recipe, corpus, tokenizer, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 60
    assert losses[-1] < 0.6 * losses[0]
    assert set(result.scores) == {"en", "zh"}
    assert result.scores["en"].loss < losses[0]
    assert all("eval" in line for line in lines if line["step"] in (20, 40, 60) and "loss" not in line)
    saved = json.loads((result.checkpoint / "recipe.json").read_text())
    assert saved == json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert saved["training"]["steps"] == 60


def test_minutes_become_steps_once(recipe, corpus, tokenizer, tmp_path):
    """The number is stored; a resumed run does not measure again."""
    out = tmp_path / "run"
    train(recipe, corpus, tokenizer, out, minutes=0.08)
    first = json.loads((out / "recipe.json").read_text())["training"]
    assert first["minutes"] == 0.08
    assert first["steps"] != recipe.training.steps
    result = train(recipe, corpus, tokenizer, out, minutes=0.5, resume=True)
    assert result.recipe.training.steps == first["steps"]


def test_steps_of_minutes_leave_time_for_evaluations(recipe):
    """60 seconds at 0.1 s a step: 600 without evaluations, fewer with them."""
    import time

    with_minutes = short(recipe, minutes=1.0)
    without = start.steps_of_minutes(with_minutes, time.monotonic(), 0.1, eval_tokens=0).training.steps
    assert 595 <= without <= 600
    tokens = 100 * recipe.training.batch_size * recipe.data.seq_len  # an evaluation as long as 40 steps
    assert start.steps_of_minutes(with_minutes, time.monotonic(), 0.1, eval_tokens=tokens).training.steps < without - 40


def test_a_second_run_in_the_same_folder_is_refused(recipe, corpus, tokenizer, tmp_path):
    """Unless it is the same one, resumed."""
    train(short(recipe), corpus, tokenizer, tmp_path)
    with pytest.raises(UsageError, match="--resume"):
        train(short(recipe), corpus, tokenizer, tmp_path)
    with pytest.raises(UsageError, match=r"training\.learning_rate"):
        train(short(recipe, learning_rate=0.5), corpus, tokenizer, tmp_path, resume=True)


def test_a_tokenizer_of_another_size_is_refused(recipe, corpus, tokenizer, tmp_path):
    """Both numbers are named."""
    small = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, vocab_size=300))
    with pytest.raises(UsageError, match=r"512.*300"):
        train(small, corpus, tokenizer, tmp_path)


def test_a_sequence_beyond_the_context_is_refused(recipe, corpus, tokenizer, tmp_path):
    """Positions the model has never had."""
    long = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, seq_len=512))
    with pytest.raises(UsageError, match=r"data\.seq_len \(512\)"):
        train(long, corpus, tokenizer, tmp_path)


def test_a_loss_that_is_not_a_number_stops_the_run(recipe, corpus, tokenizer, tmp_path):
    """It names the step, and no checkpoint is written of it."""
    wild = short(recipe, learning_rate=1e30, max_grad_norm=0.0, warmup_fraction=0.0)
    with pytest.raises(QwqError, match="lower the learning rates"):
        train(wild, corpus, tokenizer, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_out_of_memory_comes_at_the_first_batch(recipe, corpus, tokenizer, tmp_path, monkeypatch):
    """Before any step, with what to lower."""

    def full(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(start, "compute_gradients", full)
    with pytest.raises(QwqError, match=r"micro_batch_size \(2\)"):
        train(recipe, corpus, tokenizer, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_learning_rate_warms_up_stays_and_falls_to_zero(recipe):
    """100 steps: 10 up, 40 down."""
    config = dataclasses.replace(recipe.training, steps=100, warmup_fraction=0.1, decay_fraction=0.4)
    factors = [optim.learning_rate_factor(step, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:61] == pytest.approx([1.0] * 52)
    assert factors[-1] == pytest.approx(1 / 40)
    assert factors[60:] == sorted(factors[60:], reverse=True)


def test_muon_has_the_matrices_of_the_blocks_and_adamw_the_rest(recipe, tiny_config):
    """Every parameter in exactly one optimizer."""
    model = Decoder(tiny_config)
    muon, adamw = optim.build(model, recipe.training)
    names = {id(p): n for n, p in model.named_parameters()}
    in_muon = [names[id(p)] for g in muon.param_groups for p in g["params"]]
    in_adamw = [names[id(p)] for g in adamw.param_groups for p in g["params"]]
    assert sorted(in_muon + in_adamw) == sorted(names.values())
    assert all(".layers." in n and n.endswith("proj.weight") for n in in_muon)
    assert "model.embed_tokens.weight" in in_adamw
