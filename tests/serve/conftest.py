"""A running server over real, tiny models: one babbles, one never ends, one says what it was built to say."""

import dataclasses

import httpx
import pytest
import torch
from serve_helpers import ANSWER, KEY, THOUGHT, speaking, start

from qwq.checkpoint import Checkpoint
from qwq.engine import LanguageModel
from qwq.model import Decoder
from qwq.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def models(tokenizer, checkpoint, tmp_path_factory):
    """name -> LanguageModel. "endless" has no end token and a long context; "narrow" is that with one slot and a queue
    of one; "thinker" opens <think> in its template, as QwQ does; "broken" has a head of a wrong shape."""
    long = Decoder(dataclasses.replace(checkpoint.config, max_position_embeddings=16384))
    long.load_state_dict(checkpoint.model.state_dict())
    long_checkpoint = dataclasses.replace(checkpoint, config=long.config, model=long.eval())

    folder = tmp_path_factory.mktemp("thinker")
    tokenizer.save(folder)
    thinking_tokenizer = load_tokenizer(folder)
    thinking_tokenizer.chat_template = tokenizer.chat_template.replace(
        "'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'"
    )
    script = speaking(thinking_tokenizer, f"{THOUGHT}</think>{ANSWER}")
    thinker = Checkpoint("thinker", folder, "qwq", script.config, script, thinking_tokenizer)

    broken = Decoder(checkpoint.config)
    broken.lm_head.weight = torch.nn.Parameter(torch.zeros(3, 3))

    made = {
        "tiny": LanguageModel(checkpoint, max_batch_size=4),
        "endless": LanguageModel(long_checkpoint, name="endless", max_batch_size=4),
        "narrow": LanguageModel(long_checkpoint, name="narrow", max_batch_size=1, max_queue=1),
        "org/thinker": LanguageModel(thinker),
        "broken": LanguageModel(dataclasses.replace(checkpoint, model=broken)),
    }
    for name in ("endless", "narrow"):
        made[name].stop_ids = frozenset()
    yield made
    for lm in made.values():
        lm.close()


@pytest.fixture(scope="session")
def served(models):
    """A server without a key."""
    running = start(models)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def locked(models):
    """A server that demands KEY."""
    running = start(models, api_key=KEY)
    yield running
    running.stop()


@pytest.fixture
def http(served):
    """An httpx client of the server without a key."""
    with httpx.Client(base_url=served.url, timeout=60) as client:
        yield client
