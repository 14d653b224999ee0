"""The C++ decode step against the plain torch decoder: every kind of config, every format of weights, rows of any length."""

import copy
import dataclasses
import shutil
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch

from qwq.kernels import compile as kernels
from qwq.kernels.decode import fast_decode
from qwq.kernels.quantised import Quantised
from qwq.model import Decoder, KVCache, ModelConfig

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler on this machine"
)

# No size is a multiple of a vector: 96 = 3 blocks, odd vocabulary, head_dim 12 and 24.
LLAMA = ModelConfig(
    vocab_size=211, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=8,
    num_key_value_heads=4, head_dim=12, max_position_embeddings=512, initializer_range=0.1,
)  # fmt: skip
CONFIGS = {
    "llama": LLAMA,
    "qwen2": dataclasses.replace(LLAMA, attention_bias=True, tie_word_embeddings=False),
    "qwen3": dataclasses.replace(LLAMA, use_qk_norm=True, head_dim=24, num_key_value_heads=1),
    "biases-relu2": dataclasses.replace(
        LLAMA, attention_bias=True, attention_output_bias=True, mlp_bias=True, hidden_act="relu2"
    ),
    "yarn": dataclasses.replace(
        LLAMA, rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    ),
    "odd": dataclasses.replace(LLAMA, hidden_size=70, intermediate_size=101, num_key_value_heads=8, head_dim=10),
}


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory):
    """One cache of compiled kernels for this file, so that compiling itself is tested too."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(params=list(kernels.INSTRUCTIONS))
def isa(request, monkeypatch, kernel_cache):
    """Every instruction set that this machine has, narrowest last."""
    order = list(kernels.INSTRUCTIONS)
    if order.index(request.param) < order.index(kernels.instructions()):
        pytest.skip(f"this machine has no {request.param}")
    monkeypatch.setenv("QWQ_INSTRUCTIONS", request.param)
    monkeypatch.setenv("QWQ_CACHE_DIR", str(kernel_cache))
    return request.param


def build(config: ModelConfig, quantised_as: str | None = None) -> tuple[Decoder, dict[str, Quantised]]:
    """Random weights, also in the biases and norms; quantised, the model holds the dequantised values."""
    model, quantised = Decoder(config).eval(), {}
    model.init_weights(seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(1.0 if "norm" in name else 0.0, 0.3)
            elif quantised_as and parameter.shape[1] % 32 == 0:
                kind = gguf.GGMLQuantizationType[quantised_as]
                data = gguf.quantize(parameter.numpy(), kind)
                blocks = torch.from_numpy(data).view(len(data), parameter.shape[1] // 32, -1)
                quantised[name] = Quantised(quantised_as, blocks)
                parameter.copy_(torch.from_numpy(gguf.dequantize(data, kind)))
    return model, quantised


def rows_of(model: Decoder, lengths: list[int], *, offset: int = 0) -> tuple[KVCache, torch.Tensor]:
    """A cache with rows of these lengths from row `offset` on, and the next token of each."""
    cache = KVCache(model.config, offset + len(lengths), torch.float32)
    for row, length in enumerate(lengths, start=offset):
        model(torch.randint(model.config.vocab_size, (1, length)), cache=cache.rows(row, row + 1))
    return cache, torch.randint(model.config.vocab_size, (len(lengths), 1))


def check(model: Decoder, quantised: dict, lengths: list[int], steps: int = 3, *, offset: int = 0) -> None:
    """Several steps here and there: the same logits, the same cache, the same greedy tokens unless two nearly tie."""
    step = fast_decode(model, quantised)
    assert step is not None
    with torch.no_grad():
        theirs, ids = rows_of(model, lengths, offset=offset)
        ours, rows = copy.deepcopy(theirs), (offset, offset + len(lengths))
        for _ in range(steps):
            expected = model(ids, cache=theirs.rows(*rows))[:, -1]
            got = step(ids, ours.rows(*rows))[:, -1]
            assert got.shape == expected.shape
            scale = expected.abs().max()
            assert (got - expected).abs().max() <= 1e-4 * scale
            top = expected.topk(2).values
            clear = top[:, 0] - top[:, 1] > 1e-3
            assert torch.equal(got.argmax(-1)[clear], expected.argmax(-1)[clear])
            assert ours.lengths == theirs.lengths
            torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(ours.values, theirs.values, rtol=1e-3, atol=1e-4)
            ids = expected.argmax(-1, keepdim=True)


@needs_compiler
@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_gives_the_decoders_logits(name, isa):
    model, _ = build(CONFIGS[name])
    check(model, {}, [1, 37, 5])


@needs_compiler
@pytest.mark.parametrize("quantised_as", ["Q4_0", "Q4_1", "Q8_0"])
def test_quantised_weights_give_the_dequantised_models_logits(quantised_as, isa):
    model, quantised = build(CONFIGS["qwen2"], quantised_as)
    assert len(quantised) == 2 + 7 * 2
    check(model, quantised, [3, 20])


@needs_compiler
@pytest.mark.parametrize("rows", range(1, 10))
def test_batches_of_any_size_and_any_lengths(rows):
    model, quantised = build(LLAMA, "Q4_1")
    check(model, quantised, [1 + 29 * row % 70 for row in range(rows)])


@needs_compiler
def test_rows_in_the_middle_of_the_cache():
    model, quantised = build(LLAMA, "Q8_0")
    check(model, quantised, [4, 9], offset=3)


@needs_compiler
def test_only_some_matrices_quantised_and_in_different_formats():
    model, quantised = build(LLAMA, "Q4_0")
    other, eight = build(LLAMA, "Q8_0")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "up_proj" in name or "k_proj" in name:  # 8-bit
                quantised[name] = eight[name]
                parameter.copy_(dict(other.named_parameters())[name])
            elif "gate_proj" in name:  # float32
                del quantised[name]
    check(model, quantised, [12])


@needs_compiler
def test_the_cache_and_the_rotary_table_grow_together():
    model, _ = build(CONFIGS["yarn"])
    check(model, {}, [255], steps=4)  # a cache grows at 256


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_logits(threads):
    before = torch.get_num_threads()
    model, quantised = build(LLAMA, "Q4_1")
    try:
        torch.set_num_threads(threads)
        check(model, quantised, [1, 2, 40])
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_large_activations_do_not_overflow():
    model, _ = build(LLAMA)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight *= 100
            layer.self_attn.q_proj.weight *= 30
    check(model, {}, [6, 3])


@pytest.mark.parametrize("quantised_as", ["Q4_0", "Q4_1", "Q8_0"])
def test_dequantise_is_ggufs(quantised_as):
    kind = gguf.GGMLQuantizationType[quantised_as]
    data = gguf.quantize(np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32), kind)
    blocks = torch.from_numpy(data).view(5, 3, -1)
    assert torch.equal(Quantised(quantised_as, blocks).dequantise(), torch.from_numpy(gguf.dequantize(data, kind)))


def test_a_model_of_another_kind_is_left_to_torch():
    """Half precision, float64, or a parameter that the kernel does not know: no kernel rather than a wrong one."""
    assert fast_decode(build(LLAMA)[0].double()) is None
    assert fast_decode(build(LLAMA)[0].bfloat16()) is None
    model, _ = build(LLAMA)
    model.model.layers[0].mlp.register_parameter("router", torch.nn.Parameter(torch.zeros(2)))
    assert fast_decode(model) is None


def test_without_a_compiler_it_says_so_and_goes_without(monkeypatch, caplog):
    monkeypatch.setattr(kernels, "shutil", SimpleNamespace(which=lambda name: None))
    monkeypatch.delenv("CXX", raising=False)
    kernels.library.cache_clear()
    try:
        assert fast_decode(build(LLAMA)[0]) is None
        assert [r.message for r in caplog.records] == [
            "no C++ compiler (g++ or clang++) found: the slower PyTorch path is taken"
        ]
    finally:
        kernels.library.cache_clear()


@needs_compiler
def test_a_compiler_that_fails_is_named_in_one_line(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("QWQ_CACHE_DIR", str(tmp_path))
    source = tmp_path / "broken.cpp"
    source.write_text("this is not C++\n")
    assert kernels.library(source, "generic") is None
    [record] = caplog.records
    assert record.message.startswith("broken.cpp was not compiled, the slower PyTorch path is taken: ")
    assert not list((tmp_path / "kernels").iterdir())  # nothing half-made is left


@needs_compiler
def test_a_second_process_finds_the_compiled_kernel(monkeypatch, tmp_path):
    monkeypatch.setenv("QWQ_CACHE_DIR", str(tmp_path))
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }\n')
    first = kernels.library(source, "generic")
    assert first is not None
    assert first.one() == 1
    [made] = (tmp_path / "kernels").iterdir()
    kernels.library.cache_clear()
    monkeypatch.setattr(kernels, "_compile", None)  # not called
    assert kernels.library(source, "generic") is not None
    source.write_text('extern "C" int one() { return 2; }\n')
    monkeypatch.undo()
    monkeypatch.setenv("QWQ_CACHE_DIR", str(tmp_path))
    kernels.library.cache_clear()
    second = kernels.library(source, "generic")
    assert second is not None
    assert second.one() == 2  # another source is another kernel
    assert len(list(made.parent.iterdir())) == 2
    kernels.library.cache_clear()


@needs_compiler
@pytest.mark.parametrize("quantised_as", [None, "Q4_1"])
@torch.no_grad()
def test_several_tokens_of_every_row_at_once(quantised_as, isa):
    model, quantised = build(CONFIGS["qwen3"], quantised_as)
    step = fast_decode(model, quantised)
    theirs, _ = rows_of(model, [1, 37, 5], offset=1)
    ours, ids = copy.deepcopy(theirs), torch.randint(model.config.vocab_size, (3, 6))
    expected = model(ids, cache=theirs.rows(1, 4))
    got = step(ids, ours.rows(1, 4))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert ours.lengths == theirs.lengths == [0, 7, 43, 11]
    torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-3, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("name", ["llama", "odd"])
@pytest.mark.parametrize("threads", [1, 3])
@torch.no_grad()
def test_a_draft_is_the_first_layers_greedy_choice_and_the_rest_finishes_it(name, threads):
    """Head of 70 columns: read as floats; of 96: as 8-bit weights, which may decide a near tie otherwise."""
    model, _ = build(dataclasses.replace(CONFIGS[name], num_hidden_layers=3, exit_layers=(1,)))
    step, before = fast_decode(model), torch.get_num_threads()
    cache, ids = rows_of(model, [1, 37, 5])
    start, luck = copy.deepcopy(cache), torch.randn(3, 4, model.config.vocab_size)
    try:
        torch.set_num_threads(threads)
        drafted, states = step.draft(ids, cache.rows(0, 3), luck, 2)
        assert cache.lengths == [1, 37, 5]
        logits = step.finish(drafted, states, cache.rows(0, 3), 2)
    finally:
        torch.set_num_threads(before)
    assert drafted.shape == (3, 5)
    assert cache.lengths == [6, 42, 10]
    exit_logits = model.lm_head(model.hidden(drafted, cache=copy.deepcopy(start).rows(0, 3), num_layers=2))
    scores = exit_logits[:, :-1] + luck
    best, chosen = scores.max(-1).values, scores.gather(2, drafted[:, 1:, None])[..., 0]
    assert float((best - chosen).max()) <= (0.05 if name == "llama" else 1e-4) * float(best.abs().max())
    expected = model(drafted, cache=start.rows(0, 3))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(cache.keys, start.keys, rtol=1e-3, atol=1e-4)


def test_eight_bit_weights_of_floats_are_near_them():
    matrix = torch.randn(7, 64) * torch.tensor([0.02, 1.0, 1e4, 0.0, 1.0, 1.0, 1.0])[:, None]
    back = Quantised.of(matrix).dequantise()
    assert ((back - matrix).abs() <= matrix.abs().amax(1, keepdim=True) / 127 + 1e-7).all()
