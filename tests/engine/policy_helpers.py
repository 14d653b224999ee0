"""Models with exits whose early layers guess well, and an engine stepped by hand."""

import dataclasses
import threading

import torch

from qwq.engine import ComputePolicy
from qwq.model import Decoder, ModelConfig

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=256, initializer_range=0.3, exit_layers=(0, 2),
)  # fmt: skip
SPECULATIVE = ComputePolicy("speculative")


def build(dtype=torch.float64, **changes):
    """Every layer does less than the one before, so that some guesses of the first are right."""
    model = Decoder(dataclasses.replace(CONFIG, **changes))
    model.init_weights(seed=3)
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
                matrix.weight *= 0.6**index
    return model.to(dtype).eval()


def prompts(count, vocab_size=CONFIG.vocab_size, longest=30):
    """Seeded prompts of 1 to `longest` tokens."""
    random = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, longest + 1, (count,), generator=random).tolist()
    return [torch.randint(vocab_size, (length,), generator=random).tolist() for length in lengths]


def replies(engine, jobs, **submit):
    """Submit (prompt, params) jobs and step until all have ended; (tokens, reason, request) of each."""
    engine._thread = threading.current_thread()
    results = []
    for prompt, params in jobs:
        result = {"tokens": []}
        results.append(result)

        def on_token(request, token, reason, result=result):
            if token is None:
                result["reason"] = reason
            else:
                result["tokens"].append(token)

        result["request"] = engine.submit(prompt, params, on_token, **submit)
    while engine.rows or engine.waiting:
        engine.step()
    return [(r["tokens"], r["reason"], r["request"]) for r in results]
