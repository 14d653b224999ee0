"""A running server over real, tiny models: one that babbles, one that never ends, one that says what it was built to say."""

import dataclasses
import threading
from types import SimpleNamespace

import httpx
import pytest
import torch

from qwq.checkpoint import Checkpoint
from qwq.engine import LanguageModel
from qwq.model import Decoder, ModelConfig
from qwq.serve.run import Server
from qwq.tokenizer import load_tokenizer

KEY = "correct-horse"
THOUGHT, ANSWER = "the cat reads", "我们sees light"


def speaking(tokenizer, text: str) -> Decoder:
    """A decoder that answers every prompt with `text` and then ends: its blocks add nothing, its embedding is one-hot
    and its head leads from each token of the text to the next. The text may hold no token twice."""
    ids = [*tokenizer.encode(text, special=True), tokenizer.eos_token_ids[0]]
    assert len(set(ids)) == len(ids), "a token comes twice"
    size = tokenizer.vocab_size
    model = Decoder(
        ModelConfig(size, size, 32, 1, 2, 2, 16, max_position_embeddings=2048, tie_word_embeddings=False)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight[ids[0]] = 1  # from anywhere to the first token,
        for here, there in zip(ids, ids[1:], strict=False):  # and on from there
            model.lm_head.weight[:, here] = 0
            model.lm_head.weight[there, here] = 1
    return model.eval()


@pytest.fixture(scope="session")
def models(tokenizer, checkpoint, tmp_path_factory):
    """name -> LanguageModel. "endless" has no end token and a long context; "narrow" is that with one slot and a queue of
    one; "thinker" opens <think> in its template, as QwQ does."""
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

    made = {
        "tiny": LanguageModel(checkpoint, max_batch_size=4),
        "endless": LanguageModel(long_checkpoint, name="endless", max_batch_size=4),
        "narrow": LanguageModel(long_checkpoint, name="narrow", max_batch_size=1, max_queue=1),
        "org/thinker": LanguageModel(thinker),
    }
    for name in ("endless", "narrow"):
        made[name].stop_ids = frozenset()
    yield made
    for lm in made.values():
        lm.close()


def start(models, **settings):
    """A server on a free port, run by a thread; .url, .server, .stop()."""
    server = Server(models, port=0, **settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()

    def stop() -> None:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()

    return SimpleNamespace(url=server.url, server=server, stop=stop, thread=thread)


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


def until(condition, seconds: float = 30) -> None:
    """Waits until the condition holds; fails loudly where it never does."""
    event = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        event.wait(0.02)
    raise AssertionError("it never came true")
