"""One token for each row of a batch in one C++ call (decode.cpp): float32 activations, float32 or quantised weights.

Its reference is `qwq.model.Decoder`, whose parameters and rotary table it reads; the engine chooses it when a model is
loaded. Weights that are quantised are kept so and read so, float32 weights are read where the model has them.
"""

import ctypes
import mmap
from collections.abc import Mapping
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwq.kernels.compile import instructions, library
from qwq.kernels.quantised import FORMATS, Quantised

_CODES = {format: code for code, format in enumerate(("F32", *FORMATS))}
_ACTIVATIONS = {"silu": 0, "relu2": 1}
_MATRICES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
_NORMS = {
    "input_norm": "input_layernorm", "post_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
}  # fmt: skip


class _Matrix(Structure):
    _fields_ = [(name, c_void_p) for name in ("weights", "bias")]
    _fields_ += [(name, c_int32) for name in ("format", "rows", "columns")]


class _Layer(Structure):
    _fields_ = [(name, _Matrix) for name in _MATRICES] + [(name, c_void_p) for name in _NORMS]


class _Model(Structure):
    _fields_ = [
        ("layers", POINTER(_Layer)),
        ("head", _Matrix),
        ("norm", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
    ]
    _fields_ += [("eps", c_float)]
    _fields_ += [(n, c_int32) for n in "num_layers hidden intermediate heads kv_heads head_dim activation".split()]


class _Batch(Structure):
    _fields_ = [(name, c_void_p) for name in ("x", "logits", "keys", "values", "lengths")]
    _fields_ += [(name, c_int64) for name in ("layer_stride", "row_stride", "head_stride")]
    _fields_ += [("size", c_int32), ("threads", c_int32)]


class FastDecode:
    """ids [B, 1] and cache rows -> logits [B, V], as `Decoder(ids, cache=rows)` gives them.

    `weight_bytes` is what one call reads of the weights, whatever B is.
    """

    def __init__(self, model: Any, quantised: Mapping[str, Quantised], function: Any):
        self.function = function
        self.kept: list[Tensor] = []
        self.weight_bytes = 0
        self.left = dict(model.named_parameters())
        self.quantised = quantised
        size = sum(-(-q.interleaved_bytes // 64) * 64 for q in quantised.values())
        self.arena, self.used = _huge(size), 0
        self.embed, self.rotary = model.model.embed_tokens, model.model.rotary
        config = model.config
        layers = (_Layer * config.num_hidden_layers)()
        for index, layer in enumerate(layers):
            for field, name in _MATRICES.items():
                setattr(layer, field, self._matrix(f"model.layers.{index}.{name}"))
            for field, name in _NORMS.items():
                setattr(layer, field, self._pointer(self.left.pop(f"model.layers.{index}.{name}.weight", None)))
        head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
        self.model = _Model(
            layers=layers,
            head=self._matrix(head),
            norm=self._pointer(self.left.pop("model.norm.weight")),
            eps=config.rms_norm_eps,
            num_layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            activation=_ACTIVATIONS[config.hidden_act],
        )
        self.left.pop("model.embed_tokens.weight", None)
        self.positions = 0

    def _pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.detach().contiguous()
        self.kept.append(tensor)
        return tensor.data_ptr()

    def _matrix(self, name: str) -> _Matrix:
        weight: Tensor = self.left.pop(f"{name}.weight")
        bias = self.left.pop(f"{name}.bias", None)
        rows, columns = weight.shape
        quantised = self.quantised.get(f"{name}.weight")
        if quantised is not None:
            weight = self.arena[self.used : self.used + quantised.interleaved_bytes]
            quantised.interleave(weight)
            self.used += -(-weight.nbytes // 64) * 64
        self.weight_bytes += weight.nbytes + (0 if bias is None else bias.nbytes)
        code = _CODES["F32" if quantised is None else quantised.format]
        return _Matrix(self._pointer(weight), self._pointer(bias), code, rows, columns)

    def __call__(self, ids: Tensor, rows: Any) -> Tensor:
        """ids [B, 1]; `rows` is a `CacheRows` of B rows, and holds one token more a row afterwards. Logits [B, V]."""
        cache, size = rows.cache, rows.stop - rows.start
        lengths = cache.lengths[rows.start : rows.stop]
        cache.reserve(max(lengths) + 1)
        keys, values = cache.keys[:, rows.start :], cache.values[:, rows.start :]
        self._angles(keys.shape[3])
        with torch.no_grad():
            x = self.embed(ids).contiguous()  # [B, 1, C]
        logits, before = torch.empty(size, self.model.head.rows), torch.tensor(lengths, dtype=torch.int32)
        pointers = (t.data_ptr() for t in (x, logits, keys, values, before))
        batch = _Batch(*pointers, *keys.stride()[:3], size, torch.get_num_threads())
        if self.function(ctypes.byref(self.model), ctypes.byref(batch)):
            raise MemoryError("no memory for a decode step")
        for row in range(rows.start, rows.stop):
            cache.lengths[row] += 1
        return logits

    def _angles(self, positions: int) -> None:
        """cos and sin [positions, D / 2] for as many positions as the cache can hold now."""
        if positions > self.positions:
            both = self.rotary(torch.arange(positions)[None], torch.float32)  # [1, 1, positions, D], both halves alike
            self.cos, self.sin = (t[0, 0, :, : t.shape[-1] // 2].contiguous() for t in both)
            self.model.cos, self.model.sin = self.cos.data_ptr(), self.sin.data_ptr()
            self.positions = positions


def _huge(size: int) -> Tensor:
    """uint8 [size] in pages of 2 MiB where the system has them: every weight is read once a token, and with small pages
    much of the time goes to looking up where they are."""
    page = 2**21
    memory = mmap.mmap(-1, (size // page + 2) * page)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % page
    return whole[start : start + size]


def fast_decode(model: Any, quantised: Mapping[str, Quantised] | None = None) -> FastDecode | None:
    """The C++ decode step of a model, or None where there is none: not on a CPU, not float32, a model with parts that
    the kernel does not know, no compiler. `quantised` holds matrices by parameter name, to be read instead of the
    float32 parameters."""
    parameters = list(model.parameters())
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in parameters):
        return None
    if model.config.hidden_act not in _ACTIVATIONS or not model.config.is_llama:
        return None
    compiled = library(Path(__file__).with_name("decode.cpp"), instructions())
    if compiled is None:
        return None
    compiled.qwq_decode.restype = ctypes.c_int
    step = FastDecode(model, quantised or {}, compiled.qwq_decode)
    return None if step.left else step
