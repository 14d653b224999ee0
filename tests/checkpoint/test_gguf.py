"""GGUF files written here with the `gguf` package, read back in every type, for llama and qwen2."""

import dataclasses

import gguf
import numpy as np
import pytest
import torch

from qwq.checkpoint import gguf as reader
from qwq.checkpoint import load
from qwq.checkpoint.huggingface import build
from qwq.errors import QwqError
from qwq.model import Decoder, ModelConfig

Q = gguf.GGMLQuantizationType


def config(kind: str) -> ModelConfig:
    return ModelConfig(
        vocab_size=96,
        hidden_size=256,  # K-quants take rows of 256
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        rms_norm_eps=1e-5,
        tie_word_embeddings=kind == "llama",
        attention_bias=kind == "qwen2",
        initializer_range=0.1,
    )


def to_neighbours(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of llama."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path, model: Decoder, kind: str, quantisation: Q = Q.F32, architecture: str | None = None) -> None:
    """The model as llama.cpp's converter would write it: matrices in `quantisation`, the rest in F32."""
    c = model.config
    writer = gguf.GGUFWriter(path, architecture or kind)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_theta)
    names = {f"{v}.": f"{k}." for k, v in reader._BLOCK_NAMES.items()}
    names |= {f"{v}.": f"{k}." for k, v in reader._NAMES.items()}
    for name, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        target = name
        if name.startswith("model.layers."):
            layer, part = name.removeprefix("model.layers.").split(".", 1)
            stem, _, end = part.rpartition(".")
            target = f"blk.{layer}.{names[stem + '.']}{end}"
            if kind == "llama" and ("q_proj" in part or "k_proj" in part):
                heads = c.num_attention_heads if "q_proj" in part else c.num_key_value_heads
                array = to_neighbours(array, heads)
        else:
            stem, _, end = name.rpartition(".")
            target = names[stem + "."] + end
        if array.ndim == 2 and quantisation not in (Q.F32,):
            writer.add_tensor(target, gguf.quantize(array, quantisation), raw_dtype=quantisation)
        else:
            writer.add_tensor(target, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path) -> Decoder:
    file = reader.open_gguf(path)
    shape = reader.read_config(file, path)
    return build(shape, reader.read_tensors(file, shape, path), torch.float32, path)


@pytest.fixture(params=["llama", "qwen2"])
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    model = Decoder(config(kind))
    model.init_weights(seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


@torch.no_grad()
def test_float_files_come_back_exactly(model, kind, tmp_path):
    write(tmp_path / "m.gguf", model, kind)
    again = read(tmp_path / "m.gguf")
    assert again.config == dataclasses.replace(model.config, initializer_range=0.02)  # a GGUF does not keep it
    ids = torch.randint(96, (1, 20))
    assert torch.equal(again(ids), model(ids))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "error"), [("F16", 1e-3), ("BF16", 5e-3), ("Q8_0", 8e-3), ("Q4_1", 0.1), ("Q4_0", 0.12)]
)
def test_quantised_weights_are_near_the_original(model, kind, name, error, tmp_path):
    write(tmp_path / "m.gguf", model, kind, Q[name])
    for (key, original), (_, again) in zip(
        model.named_parameters(), read(tmp_path / "m.gguf").named_parameters(), strict=True
    ):
        assert float((again - original).norm() / original.norm()) < error, key


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_k_quants_are_dequantised_block_by_block(name, tmp_path):
    """The package does not write K-quants, so the blocks are made by hand: here, a Q4_K and Q6_K of known values."""
    values = reader.gguf.dequantize(_block(name), Q[name])
    expected = {"Q4_K": 0.5 * 3 * 7 - 0.25 * 2, "Q6_K": 0.5 * 3 * (33 - 32)}[name]
    assert np.unique(values).tolist() == [expected]
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", np.tile(_block(name), (4, 1)), raw_dtype=Q[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    [(key, tensor)] = reader.read_tensors(reader.open_gguf(tmp_path / "k.gguf"), config("llama"), tmp_path / "k.gguf")
    assert key == "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(tensor, torch.full((4, 256), expected))


def _block(name: str) -> np.ndarray:
    """One block of 256 equal weights, laid out as ggml-common.h does."""
    half = np.array([0.5], np.float16).tobytes()
    if name == "Q6_K":  # ql[128] qh[64] scales[16] d: value 33 in 6 bits = low 1, high 2
        raw = bytes([0x11] * 128) + bytes([0b10101010] * 64) + bytes([3] * 16) + half
    else:  # d dmin scales[12] qs[128]: scale 3 and minimum 2 of all eight sub-blocks, in 6 bits each
        quarter = np.array([0.25], np.float16).tobytes()
        raw = half + quarter + bytes([3] * 4 + [2] * 4 + [0x23] * 4) + bytes([0x77] * 128)
    return np.frombuffer(raw, np.uint8)[None]


@pytest.mark.parametrize("architecture", ["mamba", "qwen3moe"])
def test_an_unknown_architecture_is_refused_by_name(model, kind, architecture, tmp_path):
    write(tmp_path / "m.gguf", model, kind, architecture=architecture)
    with pytest.raises(QwqError, match=f"architecture '{architecture}' is not known; known are llama, qwen2"):
        load(tmp_path / "m.gguf")


@pytest.mark.parametrize("keep", [3, 100, 3000, 200_000])
def test_a_truncated_file_is_named_with_its_size(model, kind, keep, tmp_path):
    path = tmp_path / "m.gguf"
    write(path, model, kind)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(QwqError, match=r"m\.gguf.*(bytes|not a GGUF)"):
        load(path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "m.gguf").write_text("hello")
    with pytest.raises(QwqError, match="not a GGUF file"):
        load(tmp_path / "m.gguf")
