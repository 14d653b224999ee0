"""Decoding a batch of rows in C++ (decode.cpp): float32 activations, float32 or quantised weights.

Its reference is `qwq.model.Decoder`, whose parameters and rotary table it reads; the engine chooses it when a model is
loaded. Weights that are quantised are kept so and read so, float32 weights are read where the model has them.
"""

import ctypes
import mmap
from collections.abc import Mapping
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwq.kernels.compile import instructions, library
from qwq.kernels.quantised import BLOCK, FORMATS, Quantised

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
        ("draft_head", _Matrix),
    ]
    _fields_ += [(name, c_void_p) for name in ("embed", "norm", "cos", "sin")]
    _fields_ += [("eps", c_float)]
    _fields_ += [(n, c_int32) for n in "num_layers hidden intermediate heads kv_heads head_dim activation".split()]


class _Batch(Structure):
    _fields_ = [(name, c_void_p) for name in ("ids", "states", "logits", "keys", "values", "lengths")]
    _fields_ += [(name, c_int64) for name in ("layer_stride", "row_stride", "head_stride")]
    _fields_ += [(name, c_int32) for name in ("rows", "tokens", "first", "last", "threads")]


class FastDecode:
    """ids [B, N] and cache rows -> logits [B, N, V], as `Decoder(ids, cache=rows)` gives them; for small B and N.

    With `draft` and `finish` the same in two parts, for self-speculative decoding (arXiv:2404.16710): the first layers
    guess N tokens one by one, the others read them all at once. `weight_bytes` is what one call reads of the weights.
    """

    def __init__(self, model: Any, quantised: Mapping[str, Quantised], compiled: Any):
        self.compiled = compiled
        self.kept: list[Tensor] = []
        self.weight_bytes = 0
        self.weights = dict(model.named_parameters())
        self.left = dict(self.weights)
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
        self.head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
        self.model = _Model(
            layers=layers,
            head=self._matrix(self.head),
            embed=self._pointer(self.embed.weight),
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
        """ids [B, N]; `rows` is a `CacheRows` of B rows, and holds N tokens more a row afterwards. Logits [B, N, V]."""
        states = torch.empty(*ids.shape, self.model.hidden)
        return self._logits(ids, states, rows, 0)

    def draft(self, ids: Tensor, rows: Any, luck: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """ids [B, 1] -> themselves and next tokens, of the largest logit with `luck` [B, N - 1, V] added: [B, N]; the
        states of all after the first `layers`, [B, N, C]. The cache of those layers is written; the rows are no longer.

        A matrix of floats for the logits is read as 8-bit weights here: a guess need not be exact.
        """
        if not self.model.draft_head.rows:
            self.model.draft_head = self._draft_head()
        drafted = torch.empty(len(ids), luck.shape[1] + 1, dtype=torch.long)
        drafted[:, :1] = ids
        states = torch.empty(*drafted.shape, self.model.hidden)
        self._call(self.compiled.qwq_draft, drafted, states, luck.contiguous(), rows, 0, layers)
        return drafted, states

    def finish(self, ids: Tensor, states: Tensor, rows: Any, layers: int) -> Tensor:
        """What `draft` gave, through the layers from `layers` on: logits [B, N, V], and N tokens more a row."""
        return self._logits(ids, states, rows, layers)

    def _logits(self, ids: Tensor, states: Tensor, rows: Any, first: int) -> Tensor:
        logits = torch.empty(*ids.shape, self.model.head.rows)
        self._call(self.compiled.qwq_decode, ids.contiguous(), states, logits, rows, first, self.model.num_layers)
        rows.end(ids.shape[1])
        return logits

    def _call(
        self, function: Any, ids: Tensor, states: Tensor, logits: Tensor | None, rows: Any, first: int, last: int
    ) -> None:
        cache, (size, tokens) = rows.cache, ids.shape
        lengths = cache.lengths[rows.start : rows.stop]
        cache.reserve(max(lengths) + tokens)
        keys, values = cache.keys[:, rows.start :], cache.values[:, rows.start :]
        self._angles(keys.shape[3])
        before = torch.tensor(lengths, dtype=torch.int32)
        pointers = (None if t is None else t.data_ptr() for t in (ids, states, logits, keys, values, before))
        batch = _Batch(*pointers, *keys.stride()[:3], size, tokens, first, last, torch.get_num_threads())
        if function(ctypes.byref(self.model), ctypes.byref(batch)):
            raise MemoryError("no memory for a decode step")

    def _draft_head(self) -> _Matrix:
        """The head as 8-bit weights, where it is of floats and of whole blocks."""
        head = self.model.head
        if head.format != _CODES["F32"] or head.columns % BLOCK:
            return head
        matrix = Quantised.of(self.weights[f"{self.head}.weight"].detach())
        weight = _huge(matrix.interleaved_bytes)
        matrix.interleave(weight)
        return _Matrix(self._pointer(weight), head.bias, _CODES[matrix.format], head.rows, head.columns)

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
    config = replace(model.config, exit_layers=())  # where it may be left changes nothing in a model
    if config.hidden_act not in _ACTIVATIONS or not config.is_llama:
        return None
    compiled = library(Path(__file__).with_name("decode.cpp"), instructions())
    if compiled is None:
        return None
    step = FastDecode(model, quantised or {}, compiled)
    return None if step.left else step
