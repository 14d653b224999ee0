"""A tiny corpus as token shards, a tiny recipe, and training in a process of its own that can be killed."""

import random
from pathlib import Path

import pytest
import torch
from train_helpers import Process

from qwq.data.documents import Document, DocumentWriter
from qwq.data.shards import tokenize
from qwq.recipe import DataConfig, ObjectiveConfig, Recipe, TokenizerConfig, TrainingConfig


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small gain nothing from a second thread, and lose much where other programs run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def corpus(tokenizer, tmp_path_factory) -> Path:
    """Token shards of made-up sentences, with held-out ones beside them."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(5)
    words = "the a model token cat dog river mountain reads writes 模型 读取 文字 今天 天气 很好".split()
    lines = [" ".join(rng.choices(words, k=9)) + f" {rng.randrange(1000)}." for _ in range(1200)]
    parts = {"documents/a": lines[:1000], "heldout/en": lines[1000:1100], "heldout/zh": lines[1100:]}
    for name, part in parts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        with DocumentWriter(folder / f"{name}.jsonl.zst") as writer:
            for line in part:
                writer.write(Document(line, "made-up", language=name[-2:]))
    tokenize(folder, tokenizer, folder / "tokens", progress=False)
    return folder / "tokens"


@pytest.fixture(scope="session")
def recipe(tiny_config, corpus, tokenizer, tmp_path_factory) -> Recipe:
    """60 steps of two micro-batches; a checkpoint every 7 steps, so that most kills fall between two."""
    folder = tmp_path_factory.mktemp("tokenizer-of-the-run")
    tokenizer.save(folder)
    training = TrainingConfig(
        steps=60, batch_size=4, micro_batch_size=2, save_every=7, eval_every=20, eval_tokens=200, learning_rate=1e-2
    )
    return Recipe(
        "tiny",
        tiny_config,
        TokenizerConfig(str(folder)),
        DataConfig(str(corpus), seq_len=32),
        ObjectiveConfig(chunk_size=24),
        training,
    )


@pytest.fixture(scope="session")
def uninterrupted(recipe, tmp_path_factory) -> Path:
    """The last checkpoint of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    code, error = Process(recipe, out).end()
    assert code == 0, error
    return out / "checkpoints" / "step-00000060"


@pytest.fixture
def same_as_uninterrupted(uninterrupted):
    """Asserts that a run's last checkpoint holds the same bits, weights and optimizers."""

    def check(out: Path) -> None:
        other = out / "checkpoints" / uninterrupted.name
        for name in ("model.safetensors", "training.safetensors", "training.json"):
            assert (other / name).read_bytes() == (uninterrupted / name).read_bytes(), name

    return check
