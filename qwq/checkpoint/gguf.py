"""GGUF files of llama.cpp, in: architectures llama and qwen2, dequantised through the `gguf` package."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from qwq.errors import QwqError
from qwq.kernels.quantised import FORMATS, Quantised
from qwq.model import ModelConfig

ARCHITECTURES = ("llama", "qwen2")
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def open_gguf(path: Path) -> gguf.GGUFReader:
    """A reader of a GGUF file, or a `QwqError` that says what is wrong with the file."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise QwqError(f"{path} is not a GGUF file: it begins with {magic!r}")
        return gguf.GGUFReader(path)
    except FileNotFoundError:
        raise QwqError(f"{path} is missing") from None
    except QwqError:
        raise
    except Exception as error:  # the reader raises whatever numpy raises where a file ends too soon
        size = path.stat().st_size
        raise QwqError(f"{path} ({size:,} bytes) is truncated or damaged: {error}") from None


def field(reader: gguf.GGUFReader, key: str, default: Any = None) -> Any:
    """One metadata value as a Python object."""
    entry = reader.get_field(key)
    return default if entry is None else entry.contents()


def read_config(reader: gguf.GGUFReader, path: Path) -> ModelConfig:
    """Metadata -> ModelConfig. `QwqError` names an architecture or a rope scaling that is not known."""
    kind = field(reader, "general.architecture")
    if kind not in ARCHITECTURES:
        raise QwqError(f"{path}: GGUF architecture {kind!r} is not known; known are {', '.join(ARCHITECTURES)}")
    if field(reader, f"{kind}.expert_count", 0):
        raise QwqError(f"{path}: a mixture of experts in GGUF is not known")
    names = {tensor.name for tensor in reader.tensors}
    if "rope_freqs.weight" in names:
        raise QwqError(f"{path}: rope_freqs.weight (Llama 3.1 scaling) is not known; use the Hugging Face folder")

    def number(key: str, default: Any = None) -> Any:
        value = field(reader, f"{kind}.{key}", default)
        if value is None:
            raise QwqError(f"{path}: metadata {kind}.{key} is missing")
        return value

    scaling = None
    rope_type = field(reader, f"{kind}.rope.scaling.type", "none")
    context = number("context_length")
    if rope_type in ("yarn", "linear"):
        scaling = {"rope_type": rope_type, "factor": number("rope.scaling.factor")}
        original = field(reader, f"{kind}.rope.scaling.original_context_length")
        scaling["original_max_position_embeddings"] = original or context
    elif rope_type != "none":
        raise QwqError(f"{path}: rope scaling {rope_type!r} is not known")
    heads, size = number("attention.head_count"), number("embedding_length")
    vocabulary = next((t for t in reader.tensors if t.name == "token_embd.weight"), None)
    if vocabulary is None:
        raise QwqError(f"{path}: tensor token_embd.weight is missing")
    return ModelConfig(
        vocab_size=int(vocabulary.shape[1]),
        hidden_size=size,
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=number("attention.head_count_kv", heads),
        head_dim=number("attention.key_length", size // heads),
        max_position_embeddings=context,
        rms_norm_eps=round(float(number("attention.layer_norm_rms_epsilon")), 12),
        rope_theta=float(number("rope.freq_base", 10_000.0)),
        rope_scaling=scaling,
        tie_word_embeddings="output.weight" not in names,
        attention_bias="blk.0.attn_q.bias" in names,
        attention_output_bias="blk.0.attn_output.bias" in names,
    )


def read_tensors(reader: gguf.GGUFReader, config: ModelConfig, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in Hugging Face's name and layout, float32."""
    permuted = field(reader, "general.architecture") == "llama"
    size = path.stat().st_size
    for tensor in reader.tensors:
        name = hf_name(tensor.name)
        if name is None:
            raise QwqError(f"{path}: tensor {tensor.name!r} has no place in this architecture")
        if tensor.tensor_type.name not in TYPES:
            raise QwqError(f"{path}: {tensor.name} is {tensor.tensor_type.name}; known types are {', '.join(TYPES)}")
        if tensor.data_offset + tensor.n_bytes > size:
            need = tensor.data_offset + tensor.n_bytes
            raise QwqError(f"{path} has {size:,} bytes, and {tensor.name} alone ends at byte {need:,}: it is truncated")
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        value = torch.from_numpy(np.require(array, np.float32, ["C", "W"]))  # memory-mapped F32 is read-only: copied
        if permuted and ".self_attn.q_proj." in name:
            value = _to_halves(value, config.num_attention_heads)
        elif permuted and ".self_attn.k_proj." in name:
            value = _to_halves(value, config.num_key_value_heads)
        yield name, value


def read_blocks(reader: gguf.GGUFReader, config: ModelConfig) -> Iterator[tuple[str, Quantised]]:
    """The matrices that the decode kernel can read as they are quantised, in Hugging Face's name and order of rows."""
    permuted = field(reader, "general.architecture") == "llama"
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if permuted else {}
    for tensor in reader.tensors:
        name, columns = hf_name(tensor.name), int(tensor.shape[0])
        if name is None or len(tensor.shape) != 2 or tensor.tensor_type.name not in FORMATS:
            continue
        blocks = torch.from_numpy(np.array(tensor.data)).view(int(tensor.shape[1]), columns // 32, -1)
        part = name.split(".")[-2]
        if part in heads:
            blocks = _to_halves(blocks, heads[part])
        yield name, Quantised(tensor.tensor_type.name, blocks)


def hf_name(name: str) -> str | None:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; None where there is no such parameter."""
    stem, _, kind = name.rpartition(".")
    if stem in _NAMES:
        return f"{_NAMES[stem]}.{kind}"
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        if part in _BLOCK_NAMES:
            return f"model.layers.{layer}.{_BLOCK_NAMES[part]}.{kind}"
    return None


def _to_halves(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp keeps rotary pairs of llama's q and k as neighbouring rows; here they are half a head apart."""
    rows = weight.shape[0]
    return weight.view(heads, rows // heads // 2, 2, -1).transpose(1, 2).reshape(weight.shape).contiguous()
