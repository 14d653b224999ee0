"""torch.compile of the blocks changes the speed and nothing else, and is left out where it cannot be had."""

import shutil

import pytest
import torch

from qwq.model import Decoder
from qwq.objectives import CausalLM
from qwq.train.gradients import compute_gradients
from qwq.train.start import compile_blocks


def test_without_a_compiler_the_model_stays_plain(tiny_config, monkeypatch):
    """An empty PATH: training still works."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    model = Decoder(tiny_config)
    assert not compile_blocks(model)
    assert all(layer._compiled_call_impl is None for layer in model.model.layers)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler on this machine")
def test_compiled_blocks_give_the_same_gradients(tiny_config):
    """Two layers, one compilation."""
    ids = torch.randint(tiny_config.vocab_size, (2, 40))
    results = []
    for compiled in (False, True):
        model = Decoder(tiny_config)
        model.init_weights(seed=1)
        if compiled:
            assert compile_blocks(model)
        loss = compute_gradients(model, [(ids, ids)], CausalLM())
        results.append([torch.tensor(loss), *(p.grad for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
