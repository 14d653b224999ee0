"""The same numbers as `transformers`: random tiny Qwen2, Qwen3 and Llama, in float64."""

import pytest
import torch
import transformers

from qwq.checkpoint.config_hf import from_hf, to_hf
from qwq.checkpoint.huggingface import build
from qwq.model import Decoder, KVCache

SHAPE = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,  # large, so that an error in any layer shows
}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "qwen2": (transformers.Qwen2Config, {}),
    "qwen2-yarn": (transformers.Qwen2Config, {"rope_parameters": YARN}),
    "qwen2-tied": (transformers.Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 32}),
    "qwen3-yarn": (transformers.Qwen3Config, {"head_dim": 32, "rope_parameters": YARN}),
    "qwen3-relu2": (transformers.Qwen3Config, {"head_dim": 16, "hidden_act": "relu2"}),
    "llama": (transformers.LlamaConfig, {}),
    "llama3-rope": (transformers.LlamaConfig, {"rope_parameters": LLAMA3}),
    "llama-biases": (transformers.LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": (
        transformers.LlamaConfig,
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ),
}


@pytest.fixture(params=CASES, scope="module")
def pair(request):
    """(the transformers model, ours with the same weights), float64."""
    kind, changes = CASES[request.param]
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(kind(**{**SHAPE, **changes}), dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms and biases too: at their initial 1 and 0 they prove nothing
            parameter.add_(torch.randn_like(parameter) * 0.1)
    config = from_hf({**theirs.config.to_dict(), "architectures": [type(theirs).__name__]})
    return theirs, build(config, iter(theirs.state_dict().items()), torch.float64, "memory").eval()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@torch.no_grad()
def test_logits_equal_transformers(pair):
    theirs, ours = pair
    ids = torch.randint(SHAPE["vocab_size"], (2, 48))
    assert relative_error(ours(ids), theirs(ids).logits) < 1e-5


@torch.no_grad()
def test_cached_logits_equal_transformers_with_its_cache(pair):
    theirs, ours = pair
    ids = torch.randint(SHAPE["vocab_size"], (1, 40))
    cache = KVCache(ours.config, 1, torch.float64)
    past, mine = None, []
    reference = []
    for start, stop in [(0, 17), (17, 30), *((i, i + 1) for i in range(30, 40))]:
        out = theirs(ids[:, start:stop], past_key_values=past, use_cache=True)
        past = out.past_key_values
        reference.append(out.logits)
        mine.append(ours(ids[:, start:stop], cache=cache.rows(0, 1)))
    assert relative_error(torch.cat(mine, 1), torch.cat(reference, 1)) < 1e-5


@torch.no_grad()
def test_cache_equals_no_cache_for_rows_of_different_length(pair):
    _, ours = pair
    lengths = [5, 23, 11]
    ids = torch.randint(SHAPE["vocab_size"], (3, 30))
    cache = KVCache(ours.config, 4, torch.float64)
    for row, length in enumerate(lengths):
        ours(ids[row : row + 1, :length], cache=cache.rows(row, row + 1))
    for step in range(4):
        tokens = torch.stack([ids[row, length + step] for row, length in enumerate(lengths)])[:, None]
        batched = ours(tokens, cache=cache.rows(0, 3))[:, -1]
        for row, length in enumerate(lengths):
            alone = ours(ids[row : row + 1, : length + step + 1])[0, -1]
            assert relative_error(batched[row], alone) < 1e-12


@torch.no_grad()
def test_gradients_equal_transformers(pair):
    theirs, ours = pair
    ids = torch.randint(SHAPE["vocab_size"], (2, 20))
    weights = torch.randn(2, 20, SHAPE["vocab_size"], dtype=torch.float64)
    with torch.enable_grad():
        gradients = []
        for model, logits in ((theirs, theirs(ids).logits), (ours, ours(ids))):
            parameters = dict(model.named_parameters())
            found = torch.autograd.grad((logits * weights).sum(), list(parameters.values()))
            gradients.append(dict(zip(parameters, found, strict=True)))
    for name, reference in gradients[0].items():
        assert relative_error(gradients[1][name], reference) < 1e-5, name


def test_config_survives_the_way_out_and_back(pair):
    theirs, ours = pair
    assert from_hf(to_hf(ours.config)) == ours.config
    assert {n: tuple(p.shape) for n, p in ours.state_dict().items()} == {
        n: tuple(p.shape) for n, p in theirs.state_dict().items()
    }


def test_qwq_32b_has_the_published_parameters_and_names():
    from qwq.model import PRESETS

    with torch.device("meta"):
        ours = Decoder(PRESETS["qwq-32b"])
        theirs = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**to_hf(PRESETS["qwq-32b"])))
    assert sum(p.numel() for p in ours.parameters()) == 32_763_876_352 == PRESETS["qwq-32b"].num_parameters()
    assert {n: p.shape for n, p in ours.state_dict().items()} == {n: p.shape for n, p in theirs.state_dict().items()}
