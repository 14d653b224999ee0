"""Attention of blocks to blocks: what a layout is, and the backends that compute it.

Shapes: B batch (1 in a layout where all rows are alike), H query heads, K key/value heads, G = H / K, T queries,
S keys, D head_dim, Dv width of a value head, Q query tiles, R rows of a tile, N entries of a list, Z block_size.
"""

import ctypes
import functools
from ctypes import Structure, c_int32, c_int64, c_void_p
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from qwq.kernels.compile import instructions, library
from qwq.kernels.linear import linear


@dataclass(frozen=True)
class Tiles:
    """How the tokens of one call are cut: into blocks of keys, and tiles of queries that do not cross a block.

    Blocks start with their document, so a packed document is cut as it would be alone. All tensors are integers.
    """

    block_size: int
    causal: bool
    packed: bool  # several documents stand in a row, so block c need not start at c * block_size
    aligned: bool  # tile t has the queries from t * block_size on, and every query is in one
    start: Tensor  # [B, Q] first query of a tile
    rows: Tensor  # [B, Q] its queries; 0 where a row of the batch has fewer tiles than others
    begun: Tensor  # [B, Q] queries of its block that earlier calls had
    own: Tensor  # [B, Q] number of its block in the document
    first: Tensor  # [B, Q] first key block of the document
    total: Tensor  # [B, Q] key blocks of the document
    key_start: Tensor  # [B, blocks] first key of a block
    key_rows: Tensor  # [B, blocks] its keys
    name: tuple | None = None  # the same for calls whose tiles have the same places in their documents

    @functools.cached_property
    def tables(self) -> "_Tables":
        """The same for the C++ kernel."""
        diagonal = self.first + self.own if self.causal else torch.full_like(self.own, -1)
        tensors = [self.start, self.rows, self.begun, self.first, self.limit, diagonal, self.key_start, self.key_rows]
        tensors = [x.contiguous() for x in tensors]
        tables = _Tables(*(_Table(x.data_ptr(), 0 if len(x) == 1 else x.shape[1]) for x in tensors))
        tables.kept = tensors
        return tables

    @property
    def limit(self) -> Tensor:
        """How many of the document's blocks, from the first on, a tile may see beside its own: [B, Q]."""
        return self.own if self.causal else self.total

    def take(self, chosen: Tensor) -> "Tiles":
        """Only the tiles `chosen` (numbers or booleans over Q)."""
        names = ("start", "rows", "begun", "own", "first", "total")
        return replace(self, aligned=False, name=None, **{name: getattr(self, name)[:, chosen] for name in names})


@dataclass(frozen=True)
class BlockLayout:
    """For every tile and key/value head, the blocks of keys that it sees. No tensor has a side of T and a side of S."""

    tiles: Tiles
    index: Tensor  # [B, K, Q, N] key blocks, none twice; -1 is no entry. K is 1 where all heads are alike
    bias: Tensor | None = None  # [B, K, Q, N] is added to the logits of the block

    @property
    def counts(self) -> Tensor:
        """Entries of every list, [B, K, Q]."""
        return (self.index >= 0).sum(-1)


@dataclass(frozen=True)
class Choice:
    """What the lists of a layout are extended by: the `top_k` blocks that are not in them yet and score highest."""

    asked: Tensor  # [B, K, Q, D] what stands for a tile
    pooled: Tensor  # [B, K, blocks, D] what stands for a block of keys; blocks that are missing cannot be chosen
    gate: Tensor  # [D, D] the map between the two, less the identity
    top_k: int

    def scores(self, tiles: Tiles) -> Tensor:
        """How much every tile wants every block: [B, K, Q, blocks], -inf for those it may not see."""
        asked = self.asked + linear(self.asked, self.gate)
        scores = (asked @ self.pooled.transpose(-1, -2)) * asked.shape[-1] ** -0.5
        local = torch.arange(self.pooled.shape[2], device=scores.device) - tiles.first[:, None, :, None]
        return scores.masked_fill((local < 0) | (local >= tiles.limit[:, None, :, None]), -torch.inf)

    def extend(self, layout: BlockLayout) -> BlockLayout:
        """The layout with what was chosen, and log(sigmoid(score)) as the bias of those blocks."""
        index, count = layout.index, self.pooled.shape[2]
        if count == 0:
            return layout
        scores = self.scores(layout.tiles)
        taken = scores.new_zeros(*scores.shape[:3], count + 1, dtype=torch.bool)
        index = index.expand(*scores.shape[:3], -1)
        taken = taken.scatter_(3, index.masked_fill((index < 0) | (index >= count), count), True)[..., :count]
        best, chosen = scores.masked_fill(taken, -torch.inf).topk(min(self.top_k, count))
        there = best > -torch.inf
        gate = F.logsigmoid(best.masked_fill(~there, 0)).masked_fill(~there, 0)
        index = torch.cat((index, chosen.masked_fill(~there, -1)), -1)
        return BlockLayout(layout.tiles, index, F.pad(gate, (index.shape[3] - gate.shape[3], 0)))


def attend(query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, choice: Choice | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias over the blocks of the layout) v, by the backend that is fastest here.

    query [B, H, T, D], key [B, K, S, D], value [B, K, S, Dv] -> [B, H, T, Dv]; 0 for a query that is in no tile.
    """
    fast = takes(query.device.type, query.dtype, query.shape[3], value.shape[3])
    if choice is not None and not (fast and not torch.is_grad_enabled()):
        layout, choice = choice.extend(layout), None
    if fast:
        return compiled(query, key, value, layout, choice)
    if query.is_cuda and query.dtype != torch.float64 and key.shape[3] == value.shape[3]:
        from qwq.kernels import flex  # compiles with Triton

        if flex.takes(layout.tiles, query.shape[2]):
            return flex.flex(query, key, value, layout)
    # Measured crossover (docs/log.md): lists half as long again as the keys are gathered slower than masked.
    short = 2 * layout.index.shape[3] * layout.tiles.block_size >= 3 * key.shape[2]
    return (dense if short else gathered)(query, key, value, layout)


def dense(query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout) -> Tensor:
    """The reference: the layout as a mask [B, K, T, S] over all pairs."""
    kv_heads = key.shape[1]
    mask = pair_mask(layout, query.shape[2], key.shape[2], query.dtype)
    grouped = query.unflatten(1, (kv_heads, -1))
    out = F.scaled_dot_product_attention(grouped, key[:, :, None], value[:, :, None], mask[:, :, None])
    return out.flatten(1, 2) * _row_of(layout.tiles, query.shape[2]).ge(0)[:, None, :, None]


def pair_mask(layout: BlockLayout, queries: int, keys: int, dtype: torch.dtype) -> Tensor:
    """The layout as what is added to the logits, [B, K, T, S]: the bias of a pair's blocks, or the lowest number."""
    tiles, low = layout.tiles, torch.finfo(dtype).min
    index, blocks = layout.index, tiles.key_start.shape[1]
    bias = index.new_zeros(index.shape, dtype=dtype) if layout.bias is None else layout.bias
    index = index.expand(bias.shape)
    pairs = bias.new_full((*index.shape[:3], blocks + 1), low)  # the last column takes what is no entry
    pairs = pairs.scatter(3, index.masked_fill(index < 0, blocks), bias)
    pairs[..., blocks] = low
    tile, block, rows = _row_of(tiles, queries), _column_of(tiles, keys), len(index)
    tile, block = (x.expand(max(len(x), rows), -1)[:, None].expand(-1, index.shape[1], -1) for x in (tile, block))
    pairs = pairs.expand(len(tile), -1, -1, -1)
    pairs = pairs.gather(2, tile.clamp(min=0)[..., None].expand(-1, -1, -1, blocks + 1))
    pairs = pairs.gather(3, block[:, :, None].expand(-1, -1, queries, -1))
    if tiles.causal:
        later = _key_positions(tiles, keys)[:, None] > _positions(tiles, queries)[:, :, None]
        pairs = pairs.masked_fill(later[:, None], low)
    return pairs


def _spread(tiles: Tiles, what: Tensor, start: Tensor, rows: Tensor, length: int, fill: int) -> Tensor:
    """A number of every tile or block, `what` [B, Q, Z], laid out over its tokens: [B, length], `fill` elsewhere."""
    step = torch.arange(tiles.block_size, device=start.device)
    at = torch.where(step < rows[..., None], start[..., None] + step, length)
    out = what.new_full((len(at), length + 1), fill)
    return out.scatter(1, at.flatten(1), what.expand_as(at).flatten(1))[:, :length]


def _row_of(tiles: Tiles, queries: int) -> Tensor:
    """The tile of every query, [B, T]; -1 for none."""
    number = torch.arange(tiles.start.shape[1], device=tiles.start.device)[None, :, None]
    return _spread(tiles, number, tiles.start, tiles.rows, queries, -1)


def _column_of(tiles: Tiles, keys: int) -> Tensor:
    """The block of every key, [B, S]; the number of blocks where there is none."""
    number = torch.arange(tiles.key_start.shape[1], device=tiles.start.device)[None, :, None]
    return _spread(tiles, number, tiles.key_start, tiles.key_rows, keys, tiles.key_start.shape[1])


def _positions(tiles: Tiles, queries: int) -> Tensor:
    """Block and place of every query as one number, [B, T], which orders it among keys of its document."""
    step = torch.arange(tiles.block_size, device=tiles.start.device)
    place = ((tiles.first + tiles.own) * tiles.block_size + tiles.begun)[..., None] + step
    return _spread(tiles, place, tiles.start, tiles.rows, queries, 0)


def _key_positions(tiles: Tiles, keys: int) -> Tensor:
    """Block and place of every key as one number, [B, S]."""
    step = torch.arange(tiles.block_size, device=tiles.start.device)
    place = torch.arange(tiles.key_start.shape[1], device=step.device)[:, None] * tiles.block_size + step
    return _spread(tiles, place[None], tiles.key_start, tiles.key_rows, keys, 0)


def gathered(query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout) -> Tensor:
    """Every list's blocks side by side, tiles in the batch dimension: any device and dtype, with gradients."""
    tiles, index = layout.tiles, layout.index
    batch, kv_heads, size, count = len(query), key.shape[1], tiles.block_size, index.shape[2]
    rows = 1 if query.shape[2] == 1 else size
    index = index.expand(batch, kv_heads, -1, -1)
    valid = index >= 0
    place = torch.arange(size, device=index.device)
    rows_of = (
        tiles.key_rows.expand(batch, -1)[:, None, None].expand(-1, kv_heads, count, -1).gather(3, index.clamp(min=0))
    )
    seen = (valid[..., None] & (place < rows_of[..., None]))[:, :, :, None]  # [B, K, Q, 1, N, Z]
    if tiles.causal:
        row = tiles.begun[..., None] + place[:rows]  # [B, Q, R]
        earlier = index != (tiles.first + tiles.own)[:, None, :, None]
        seen = seen & (earlier[:, :, :, None, :, None] | (place <= row[:, None, :, :, None, None]))
    bias = query.new_zeros(()) if layout.bias is None else layout.bias[:, :, :, None, :, None]
    mask = torch.where(seen, bias, torch.finfo(query.dtype).min).flatten(4).flatten(0, 2)  # [B K Q, 1 or R, N Z]
    flat = (index.clamp(min=0) + _offsets(batch, kv_heads, tiles.key_start.shape[1], index.device)).flatten()
    keys, values = (blocks(x, tiles).flatten(0, 2).flatten(1) for x in (key, value))  # [B K blocks, Z D]
    shape = (len(mask), 1, index.shape[3] * size, -1)
    keys, values = (x.index_select(0, flat).view(shape) for x in (keys, values))
    queries = query_tiles(query, tiles, rows).unflatten(1, (kv_heads, -1)).movedim(2, 3).flatten(0, 2)  # [.., G, R, D]
    out = F.scaled_dot_product_attention(queries, keys, values, mask[:, None], enable_gqa=True)
    out = out.unflatten(0, (batch, kv_heads, count)).movedim(3, 2).flatten(1, 2)  # [B, H, Q, R, Dv]
    return _untile(out, tiles, query.shape[2])


def _offsets(batch: int, heads: int, blocks: int, device: torch.device) -> Tensor:
    """Number of the first block of every row and head among all: [B, K, 1, 1]."""
    return (torch.arange(batch * heads, device=device) * blocks).view(batch, heads, 1, 1)


def blocks(x: Tensor, tiles: Tiles) -> Tensor:
    """Keys or values [B, K, S, D] -> [B, K, blocks, Z, D]; what is beyond a block's rows is some number."""
    size = tiles.block_size
    if not tiles.packed:
        return F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))
    at = (tiles.key_start[0, :, None] + torch.arange(size, device=x.device)).clamp(max=x.shape[2] - 1)
    return x.index_select(2, at.flatten()).unflatten(2, at.shape)


def query_tiles(x: Tensor, tiles: Tiles, rows: int) -> Tensor:
    """Queries [B, H, T, D] -> [B, H, Q, R, D]; what is beyond a tile's rows is some number."""
    size = tiles.block_size
    if tiles.aligned and rows == size:
        return F.pad(x, (0, 0, 0, -x.shape[2] % size)).unflatten(2, (-1, size))
    at = (tiles.start[..., None] + torch.arange(rows, device=x.device)).clamp(max=x.shape[2] - 1)  # [B, Q, R]
    if len(at) == 1:
        return x.index_select(2, at.flatten()).unflatten(2, at.shape[1:])
    wide = at.flatten(1)[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])
    return x.gather(2, wide).unflatten(2, at.shape[1:])


def _untile(x: Tensor, tiles: Tiles, length: int) -> Tensor:
    """[B, H, Q, R, Dv] -> [B, H, T, Dv]; 0 for a query that is in no tile."""
    flat, rows = x.flatten(2, 3), x.shape[3]
    if tiles.aligned and rows == tiles.block_size:
        return flat[:, :, :length]
    step = torch.arange(tiles.block_size, device=x.device)
    number = torch.arange(x.shape[2], device=x.device)[:, None] * rows + step
    at = _spread(tiles, number[None], tiles.start, tiles.rows, length, flat.shape[2])  # [B, T]
    flat = F.pad(flat, (0, 0, 0, 1))
    if len(at) == 1:
        return flat.index_select(2, at[0])
    return flat.gather(2, at[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[4]))


class _Table(Structure):
    _fields_ = [("data", c_void_p), ("batch", c_int64)]


class _Strided(Structure):
    _fields_ = [("data", c_void_p), ("batch", c_int64), ("head", c_int64), ("token", c_int64)]


_TENSORS = ("query", "key", "value", "out", "grad_out", "grad_query", "grad_key", "grad_value", "asked", "pooled")
_TABLES = ("start", "rows", "begun", "first", "limit", "diagonal", "key_start", "key_rows")
_SIZES = ("batch", "heads", "kv_heads", "tiles", "entries", "block", "width", "value_width", "queries", "keys", "pools")


class _Tables(Structure):
    _fields_ = [(name, _Table) for name in _TABLES]


class _Problem(Structure):
    _fields_ = [(name, _Strided) for name in _TENSORS]
    _fields_ += [(name, c_void_p) for name in ("lse", "grad_bias", "gate", "bias", "index")]
    _fields_ += [("index_batch", c_int64), ("index_head", c_int64), ("tables", _Tables)]
    _fields_ += [(name, c_int64) for name in _SIZES] + [(name, c_int32) for name in ("parts", "threads", "top_k")]


@functools.cache
def _compiled() -> ctypes.CDLL | None:
    return library(Path(__file__).with_name("sparse.cpp"), instructions())


def _run(name: str, problem: _Problem) -> None:
    kernel = _compiled()
    assert kernel is not None
    if getattr(kernel, name)(ctypes.byref(problem)):
        raise MemoryError("no memory for the attention kernel")


@torch.compiler.assume_constant_result
def takes(device: str, dtype: torch.dtype, width: int, value_width: int) -> bool:
    """Whether there is a C++ kernel for these: float32 on a CPU, widths that are multiples of 16, a compiler."""
    whole = width % 16 == 0 and value_width % 16 == 0
    return device == "cpu" and dtype == torch.float32 and whole and _compiled() is not None


@torch.compiler.disable
def compiled(query: Tensor, key: Tensor, value: Tensor, layout: BlockLayout, choice: Choice | None = None) -> Tensor:
    """The same in C++ (sparse.cpp), which reads keys and values where they are: float32 on a CPU, with gradients.

    A `choice` it makes itself, and without gradients.
    """
    bias = None if layout.bias is None else layout.bias.expand(len(query), -1, -1, -1)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (query, key, value, bias)):
        return _Compiled.apply(query, key, value, bias, layout)
    return _forward(query, key, value, bias, layout, None, choice)


def _problem(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, index: Tensor, tiles: Tiles) -> _Problem:
    """What both passes are told. The tensors must live as long."""
    (batch, heads, queries, width), (_, kv_heads, keys, value_width) = query.shape, value.shape
    count, entries = index.shape[2:]
    return _Problem(
        query=_strided(query),
        key=_strided(key),
        value=_strided(value),
        index=index.data_ptr(),
        index_batch=0 if len(index) == 1 else index.shape[1] * count,
        index_head=0 if index.shape[1] == 1 else count,
        tables=tiles.tables,
        bias=None if bias is None else bias.data_ptr(),
        batch=batch,
        heads=heads,
        kv_heads=kv_heads,
        tiles=count,
        entries=entries,
        block=tiles.block_size,
        width=width,
        value_width=value_width,
        queries=queries,
        keys=keys,
        # Little work is done sooner than a second thread wakes up.
        threads=torch.get_num_threads() if batch * heads * queries * entries > 256 else 1,
    )


def _strided(x: Tensor) -> _Strided:
    batch, head, token, _ = x.stride()
    return _Strided(x.data_ptr(), batch, head, token)


def _dense_rows(*tensors: Tensor) -> list[Tensor]:
    """Keys, values and the like with the last two dimensions without gaps."""
    return [x if x.stride()[-2:] == (x.shape[-1], 1) else x.contiguous() for x in tensors]


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    layout: BlockLayout,
    lse: Tensor | None,
    choice: Choice | None = None,
) -> Tensor:
    query = query if query.stride(3) == 1 else query.contiguous()
    key, value = _dense_rows(key, value)
    bias, index = None if bias is None else bias.contiguous(), layout.index.contiguous()
    problem = _problem(query, key, value, bias, index, layout.tiles)
    out = query.new_zeros(len(query), query.shape[2], query.shape[1], value.shape[3]).transpose(1, 2)
    problem.out, problem.lse = _strided(out), None if lse is None else lse.data_ptr()
    if choice is not None:
        asked, pooled, gate = _dense_rows(choice.asked, choice.pooled, choice.gate)
        problem.asked, problem.pooled, problem.gate = _strided(asked), _strided(pooled), gate.data_ptr()
        problem.pools, problem.top_k = pooled.shape[2], choice.top_k
    _run("qwq_sparse_forward", problem)
    return out


class _Compiled(torch.autograd.Function):
    """Probabilities are made again in the backward pass, as in FlashAttention (arXiv:2205.14135)."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, layout: BlockLayout) -> Tensor:
        lse = query.new_empty(query.shape[:3])
        out = _forward(query, key, value, bias, layout, lse)
        ctx.save_for_backward(query, key, value, bias, out, lse)
        ctx.layout = layout
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, out, lse = ctx.saved_tensors
        query, grad = (x if x.stride(3) == 1 else x.contiguous() for x in (query, grad))
        key, value = _dense_rows(key, value)
        bias, index = None if bias is None else bias.contiguous(), ctx.layout.index.contiguous()
        problem = _problem(query, key, value, bias, index, ctx.layout.tiles)
        problem.parts = parts = max(1, problem.threads // (problem.batch * problem.kv_heads))
        grad_query = torch.zeros_like(query)
        grad_key, grad_value = (x.new_zeros(parts, *x.shape) for x in (key, value))
        grad_bias = None if bias is None else torch.zeros_like(bias)
        problem.out, problem.grad_out, problem.grad_query = _strided(out), _strided(grad), _strided(grad_query)
        problem.grad_key.data, problem.grad_value.data = grad_key.data_ptr(), grad_value.data_ptr()
        problem.lse, problem.grad_bias = lse.data_ptr(), None if grad_bias is None else grad_bias.data_ptr()
        _run("qwq_sparse_backward", problem)
        return grad_query, grad_key.sum(0), grad_value.sum(0), grad_bias, None
