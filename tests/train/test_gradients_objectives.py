"""Every objective through the loop: it trains, saves, resumes, and a step does not depend on how it is cut."""

import dataclasses
import json

import pytest
import torch
from shared_text import sentences

from qwq.checkpoint import native
from qwq.data.documents import Document, DocumentWriter
from qwq.data.shards import tokenize
from qwq.errors import UsageError
from qwq.model import build
from qwq.train import train
from qwq.train.gradients import build_objective, compute_gradients

ASSEMBLIES = {
    "masked_lm": "encoder",
    "next_sentence": "encoder",
    "contrastive": "encoder",
    "span_denoising": "encoder-decoder",
    "prefix_lm": "encoder-decoder",
}


def with_objective(recipe, name, steps=4, **model):
    layers = 1 if ASSEMBLIES.get(name) == "encoder-decoder" else 0
    return dataclasses.replace(
        recipe,
        model=dataclasses.replace(
            recipe.model,
            architecture=ASSEMBLIES.get(name, "decoder"),
            num_encoder_layers=layers,
            vocab_size=576,
            **model,
        ),
        objective=dataclasses.replace(recipe.objective, name=name),
        training=dataclasses.replace(recipe.training, steps=steps, eval_every=100, eval_tokens=600),
    )


@pytest.mark.parametrize("name", ["masked_lm", "span_denoising", "next_sentence"])
def test_accumulated_gradients_equal_one_big_batch(name, recipe, tokenizer):
    """Packed batches too: two of them, and both packed into one."""
    recipe = with_objective(recipe, name)
    objective = build_objective(recipe, tokenizer)
    generator, line = torch.Generator().manual_seed(0), tokenizer.encode("The cat reads. A river writes 12. ")
    ids = torch.tensor((line * 10)[:90]).repeat(2, 1)
    parts = [objective.batch((ids, ids), generator) for _ in range(2)]

    def joined(name):
        first, second = (getattr(part, name) for part in parts)
        if first is None or isinstance(first, torch.Tensor):
            return None if first is None else torch.cat((first, second), -1)
        return first + [first[-1] + end for end in second[1:]]

    whole = type(parts[0])(*(joined(field) for field in parts[0]._fields[:5]))
    found = []
    for batches in (parts, [whole]):
        model = build(recipe.model).double()
        model.init_weights(seed=1)
        loss = compute_gradients(model, batches, objective)
        found.append((loss, [p.grad for p in model.parameters() if p.grad is not None]))
    assert whole.labelled > 1
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for a, b in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_the_routers_loss_is_added_for_each_token_and_not_reported(recipe, tokenizer):
    """Its gradient reaches the routers; the mean that comes back is the objective's."""
    experts = {"num_experts": 4, "moe_intermediate_size": 32}
    ids = torch.arange(40).view(2, 20)
    found = {}
    for coefficient in (0.0, 0.5):
        plain = with_objective(recipe, "causal_lm", router_aux_loss_coef=coefficient, **experts)
        model = build(plain.model)
        model.init_weights(seed=1)
        loss = compute_gradients(model, [(ids, ids)], build_objective(plain))
        found[coefficient] = loss, model.model.layers[0].mlp.gate.weight.grad
    assert found[0.0][0] == pytest.approx(found[0.5][0], rel=1e-6)
    assert not torch.allclose(found[0.0][1], found[0.5][1])


@pytest.fixture(scope="module")
def paragraphs(tokenizer, tmp_path_factory):
    """Token shards of documents of several sentences: a pair needs two."""
    folder = tmp_path_factory.mktemp("paragraphs")
    lines = sentences(600)
    for name, part in {"documents/a": lines[:500], "heldout/en": lines[500:]}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with DocumentWriter(folder / f"{name}.jsonl.zst") as writer:
            for start in range(0, len(part), 5):
                writer.write(Document(" ".join(part[start : start + 5]), "made-up", language="en"))
    tokenize(folder, tokenizer, folder / "tokens", progress=False)
    return folder / "tokens"


@pytest.mark.parametrize("name", ASSEMBLIES)
def test_qwq_train_runs_it_and_saves_the_assembly(name, recipe, paragraphs, tokenizer, tmp_path):
    recipe = with_objective(recipe, name)
    recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, seq_len=200))
    result = train(recipe, paragraphs, tokenizer, tmp_path)
    config, model = native.load_model(result.checkpoint)
    assert config.architecture == ASSEMBLIES[name]
    assert type(model) is type(build(config))
    assert all(score.tokens > 0 and score.loss > 0 for score in result.scores.values())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]


def test_a_resumed_run_masks_the_same_tokens(recipe, corpus, tokenizer, tmp_path):
    """Bit for bit: what is random in a step comes from the seed and the step alone."""
    recipe = with_objective(recipe, "masked_lm", steps=6)
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, save_every=3, keep=2))
    whole = train(recipe, corpus, tokenizer, tmp_path / "whole").checkpoint
    train(recipe, corpus, tokenizer, tmp_path / "cut")
    last = tmp_path / "cut" / "checkpoints" / whole.name
    for file in list(last.iterdir()):  # as if it had been killed between the two checkpoints
        file.unlink()
    last.rmdir()
    again = train(recipe, corpus, tokenizer, tmp_path / "cut", resume=True).checkpoint
    for name in ("model.safetensors", "training.safetensors"):
        assert (whole / name).read_bytes() == (again / name).read_bytes()


def test_a_student_is_trained_by_a_checkpoint(recipe, corpus, tokenizer, tmp_path):
    """`objective.teacher` is a model as --model takes it."""
    decoder = dataclasses.replace(with_objective(recipe, "causal_lm"), name="teacher")
    teacher = train(decoder, corpus, tokenizer, tmp_path / "teacher")
    student = dataclasses.replace(
        decoder,
        objective=dataclasses.replace(recipe.objective, name="distillation", teacher=str(tmp_path / "teacher")),
    )
    result = train(student, corpus, tokenizer, tmp_path / "student")
    assert set(result.scores) == set(teacher.scores)
    encoder = build(with_objective(recipe, "masked_lm").model)
    native.save(tmp_path / "encoder", encoder, tokenizer, {})
    named = dataclasses.replace(student.objective, teacher=str(tmp_path / "encoder"))
    wrong = dataclasses.replace(student, objective=named)
    with pytest.raises(UsageError, match="is no decoder"):
        train(wrong, corpus, tokenizer, tmp_path / "other")


def test_an_objective_that_does_not_fit_is_refused_before_anything_is_written(recipe, corpus, tokenizer, tmp_path):
    masked = dataclasses.replace(recipe, objective=dataclasses.replace(recipe.objective, name="masked_lm"))
    masked = dataclasses.replace(masked, model=dataclasses.replace(masked.model, vocab_size=576))
    with pytest.raises(UsageError, match="objective masked_lm makes no sense for architecture 'decoder'"):
        train(masked, corpus, tokenizer, tmp_path / "run")
    assert not (tmp_path / "run").exists()
