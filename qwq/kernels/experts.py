"""Every token through its own experts: gated feed-forwards, stacked, none of whose tokens is dropped.

Shapes: N tokens, C hidden_size, E experts, A experts of a token, S = N * A pairs, I width of an expert.
"""

import ctypes
from collections.abc import Callable
from ctypes import c_int32, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qwq.kernels.compile import instructions, library

Activation = Callable[[Tensor], Tensor]
_CODES = {"silu": 0, "relu2": 1, "relu": 2}  # what experts.cpp knows


def experts(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, chosen: Tensor, act: Activation) -> Tensor:
    """Sum over a token's experts of weight * down(act(gate(x)) * up(x)): x [N, C] -> [N, C].

    gate_up [E, 2 I, C] (gate first), down [E, C, I], weights [N, A] and expert numbers chosen [N, A]. fp32 on a CPU
    takes experts.cpp where it could be compiled, fp64 and odd sizes `reference`, all else torch's grouped product.
    """
    name = getattr(act, "__name__", "")
    kernel = _kernel() if x.device.type == "cpu" and x.dtype == torch.float32 and name in _CODES else None
    if kernel is not None:
        return _by_kernel(x, gate_up, down, weights, chosen, _CODES[name])
    strides = x.shape[1] % 8 == 0 and down.shape[2] % 8 == 0  # torch wants multiples of 16 bytes
    form = grouped if strides and x.dtype != torch.float64 else reference
    return form(x, gate_up, down, weights, chosen, act)


def count(chosen: Tensor, num_experts: int) -> Tensor:
    """How often each expert was chosen, [E]; without the wait for a GPU that `bincount` is."""
    flat = chosen.flatten()
    return flat.new_zeros(num_experts).scatter_add_(0, flat, torch.ones_like(flat))


def reference(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, chosen: Tensor, act: Activation) -> Tensor:
    """Expert by expert, in plain operations: what tests compare with."""
    out = torch.zeros_like(x)
    for expert, (up_matrix, down_matrix) in enumerate(zip(gate_up.unbind(), down.unbind(), strict=True)):
        token, slot = (chosen == expert).nonzero(as_tuple=True)
        gate, up = F.linear(x[token], up_matrix).chunk(2, dim=-1)
        out = out.index_add(0, token, F.linear(act(gate) * up, down_matrix) * weights[token, slot, None])
    return out


def grouped(x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, chosen: Tensor, act: Activation) -> Tensor:
    """Tokens sorted by expert, then torch's grouped product, in the precision of autocast where that is on."""
    flat, device = chosen.flatten(), x.device.type
    order = flat.argsort(stable=True)
    ends = count(chosen, len(gate_up)).cumsum(0, dtype=torch.int32)
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    rows = x.to(dtype)[order // chosen.shape[1]]
    gate, up = F.grouped_mm(rows, gate_up.to(dtype).transpose(1, 2), offs=ends).chunk(2, dim=-1)
    out = F.grouped_mm(act(gate) * up, down.to(dtype).transpose(1, 2), offs=ends)
    out = out * weights.flatten()[order, None]
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=x.device))
    return out[back].view(*chosen.shape, -1).sum(1).to(x.dtype)


class _Call(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in "x gate_up down weights chosen starts token place hidden out".split()]
    _fields_ += [(name, c_void_p) for name in "grad grad_x grad_gate_up grad_down grad_weights".split()]
    _fields_ += [(name, c_int32) for name in "tokens each experts size inner activation threads".split()]


def _kernel() -> Any:
    """The C++ function; None without a compiler, or on a processor whose vectors are too short for it to pay."""
    isa = instructions()
    compiled = library(Path(__file__).with_name("experts.cpp"), isa) if isa != "generic" else None
    return None if compiled is None else compiled.qwq_experts


def _run(activation: int, **tensors: Tensor) -> None:
    x, gate_up, chosen = tensors["x"], tensors["gate_up"], tensors["chosen"]
    pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    sizes = (*chosen.shape, len(gate_up), x.shape[1], gate_up.shape[1] // 2)
    call = _Call(**pointers)
    call.tokens, call.each, call.experts, call.size, call.inner = sizes
    call.activation, call.threads = activation, torch.get_num_threads()
    if _kernel()(ctypes.byref(call)):
        raise MemoryError("no memory for the experts of this batch; lower micro_batch_size")


@torch.compiler.disable
def _by_kernel(*args: Any) -> Tensor:
    return _Experts.apply(*args)


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gate_up: Tensor, down: Tensor, weights: Tensor, chosen: Tensor, activation: int):
        given = {"x": x, "gate_up": gate_up, "down": down, "weights": weights, "chosen": chosen}
        given = {name: tensor.detach().contiguous() for name, tensor in given.items()}
        pairs, empty = chosen.numel(), torch.empty
        order = [empty(size, dtype=torch.int32) for size in (len(gate_up) + 1, pairs, pairs)]
        given |= dict(zip(("starts", "token", "place"), order, strict=True))
        if any(ctx.needs_input_grad):
            given["hidden"] = x.new_empty(pairs, gate_up.shape[1])
        out = torch.empty_like(given["x"])
        _run(activation, **given, out=out)
        ctx.activation, ctx.names = activation, list(given)
        ctx.save_for_backward(*given.values())
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        given = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        names = ("x", "gate_up", "down", "weights")
        gradients = {f"grad_{name}": torch.empty_like(given[name]) for name in names}
        _run(ctx.activation, **given, grad=grad.contiguous(), **gradients)
        return *gradients.values(), None, None
