"""What the tests of the server share besides fixtures."""

import itertools
import threading
from types import SimpleNamespace

import torch

from qwq.model import Decoder, ModelConfig
from qwq.serve.run import Server

KEY = "correct-horse"
THOUGHT, ANSWER = "the cat reads", "我们sees light"


def speaking(tokenizer, text: str) -> Decoder:
    """A decoder that answers every prompt with `text` and then ends: its blocks add nothing, its embedding is one-hot
    and its head leads from each token of the text to the next. The text may hold no token twice."""
    ids = [*tokenizer.encode(text, special=True), tokenizer.eos_token_ids[0]]
    assert len(set(ids)) == len(ids), "a token comes twice"
    size = tokenizer.vocab_size
    config = ModelConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    model = Decoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.norm.weight.fill_(1)
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight[ids[0]] = 1  # from anywhere to the first token,
        for here, there in itertools.pairwise(ids):  # and on from there
            model.lm_head.weight[:, here] = 0
            model.lm_head.weight[there, here] = 1
    return model.eval()


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


def until(condition, seconds: float = 30) -> None:
    """Waits until the condition holds; fails loudly where it never does."""
    event = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        event.wait(0.02)
    raise AssertionError("it never came true")
