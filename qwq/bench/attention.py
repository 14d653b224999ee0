"""`qwq bench attention`: sparse attention against SDPA, FlexAttention's forward pass, `transformers`' BigBird."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from qwq.bench import common
from qwq.bench.picture import log_log
from qwq.kernels.sparse import BlockLayout, attend
from qwq.model import KVCache, ModelConfig
from qwq.model.attention import Attention, Tokens
from qwq.model.sparsity import SparseAttention, cut_tokens

HEADS, KV_HEADS, WIDTH, BLOCK, LAYERS = 8, 2, 64, 64, 8
GIVEN = "local(129)+global(64)+random(2)"  # three blocks of neighbours, one global, two drawn
LEARNED = "local(129)+global(64)+learnable(2)"
BIDIRECTIONAL = "local(64)+global(64)+random(4)"  # as many blocks as BigBird's three, two and three
GROWTH = (2048, 4096, 8192, 16_384, 32_768, 65_536)  # tokens


def run(
    json_path: common.JsonPath = None,
    *,
    rounds: int = 5,
    cases: list[str] | None = None,
    picture: Path = Path("docs/attention.svg"),
) -> dict:
    """Measure every case, interleaved, then the growth from 2k to 64k tokens, drawn into `picture`.

    Rates are passes a second of one attention layer.

    A case that is "learned" includes the summaries of blocks, their scores and top-k, and in training the gate's
    gradient. Decoding is tokens a second through the attention of `LAYERS` layers; ours also stores keys and values.
    """
    torch.manual_seed(0)
    makers = {
        "8192-fwd-bwd-layout": lambda: _training(GIVEN),
        "8192-fwd-bwd-learned": lambda: _training(LEARNED),
        "8192-fwd-layout": _forward,
        "4096-fwd-bwd-bidirectional": _bidirectional,
        "32768-decode-learned": _decoding,
    }
    measured, rows, sweep = common.limits(), [], {}
    for case, make in makers.items():
        if cases is not None and case not in cases:
            continue
        calls, flops = make()
        for call in calls.values():  # what only the first calls pay
            call()
            call()
        repeats = 20 if "decode" in case else 1
        rates = common.interleave({name: _timed(call, repeats) for name, call in calls.items()}, rounds)
        sweep[case] = {name: [float(f"{rate:.4g}") for rate in values] for name, values in rates.items()}
        share = statistics.median(rates["qwq"]) * flops / 1e9 / measured["gemm_gflop_s"] if flops else None
        for peer in dict.fromkeys(name.split(" ")[0] for name in rates if name != "qwq"):
            settings = [name for name in rates if name.split(" ")[0] == peer]
            best = max(settings, key=lambda name: statistics.median(rates[name]))
            setting = f"fp32, {torch.get_num_threads()} threads, fastest of the sweep: {best}"
            unit = "tokens/s" if "decode" in case else "passes/s"
            row = common.compare(
                case, rates["qwq"], rates[best], peer=peer, peer_setting=setting, unit=unit, limit_fraction=share
            )
            rows.append(row)
    found, grown = common.versions("transformers"), {}
    if cases is None and picture.parent.is_dir():
        grown = growth(GROWTH)
        title = f"Attention, forward and backward: {HEADS} query and {KV_HEADS} key/value heads of {WIDTH}, fp32"
        picture.write_text(log_log(title, "tokens", "seconds", GROWTH, grown), encoding="utf-8")
    return common.report("attention", rows, measured, found, json_path, sweep=sweep, growth=grown)


def growth(lengths: Sequence[int], rounds: int = 3) -> dict[str, list[float]]:
    """Median seconds of a forward and backward pass at each length; dense ones above 16k tokens are timed once."""
    seconds: dict[str, list[float]] = {"dense (SDPA)": [], "sparse, learned": [], "sparse, layout given": []}
    for tokens in lengths:
        given, learned = _training(GIVEN, tokens)[0], _training(LEARNED, tokens)[0]
        calls = dict(zip(seconds, (given["SDPA enable_gqa"], learned["qwq"], given["qwq"]), strict=True))
        for name, call in calls.items():
            once = tokens > 16_384 and name.startswith("dense")
            if not once:
                call()
            rates = [common.rate(call, 1) for _ in range(1 if once else rounds)]
            seconds[name].append(float(f"{1 / statistics.median(rates):.4g}"))
    return seconds


def _timed(call: Callable[[], object], repeats: int) -> Callable[[], float]:
    return lambda: common.rate(call, 1, repeats)


def _tokens(count: int, causal: bool) -> Tokens:
    return Tokens(torch.arange(count)[None], None, causal)


def _sparse(pattern: str, layer: int = 0) -> SparseAttention:
    module = SparseAttention(_config(pattern), layer)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return module


def _config(pattern: str, kv_heads: int = KV_HEADS) -> ModelConfig:
    return ModelConfig(
        hidden_size=HEADS * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        head_dim=WIDTH,
        attention_patterns=(pattern,),
        attention_block_size=BLOCK,
    )


def _inputs(tokens: int, grad: bool) -> list[Tensor]:
    return [torch.randn(1, heads, tokens, WIDTH, requires_grad=grad) for heads in (HEADS, KV_HEADS, KV_HEADS)]


def _products(layout: BlockLayout, count: int) -> float:
    """FLOPs of `count` matrix products for every pair of blocks in the lists, all heads."""
    return float(layout.counts.float().mean()) * layout.index.shape[2] * HEADS * count * 2 * BLOCK**2 * WIDTH


def _layout(tensors: list[Tensor], module: SparseAttention) -> BlockLayout:
    tiles = cut_tokens(tensors[0], tensors[1], _tokens(tensors[0].shape[2], True), None, BLOCK)
    assert tiles is not None
    return BlockLayout(tiles, module.fixed(tiles, KV_HEADS, None))


def _training(pattern: str, tokens: int = 8192) -> tuple[dict[str, Callable[[], object]], float]:
    tensors, module = _inputs(tokens, True), _sparse(pattern)
    layout, gradient = _layout(tensors, module), torch.randn(1, HEADS, tokens, WIDTH)
    given = pattern == GIVEN
    leaves = [*tensors, *module.parameters()]

    def both(call: Callable[..., Tensor]) -> Callable[[], object]:
        def step() -> None:
            for leaf in leaves:
                leaf.grad = None
            call(*tensors).backward(gradient)

        return step

    calls = {
        "qwq": both(lambda q, k, v: attend(q, k, v, layout) if given else module(q, k, v, _tokens(tokens, True))),
        "SDPA enable_gqa": both(_grouped),
        "SDPA repeated": both(_repeated),
    }
    return calls, _products(layout, 7) if given else 0


def _grouped(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


def _forward() -> tuple[dict[str, Callable[[], object]], float]:
    """The forward pass alone: FlexAttention has no backward pass on a CPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens = 8192
    tensors, module = _inputs(tokens, False), _sparse(GIVEN)
    query, key, value = tensors
    layout = _layout(tensors, module)
    blocks = layout.index.shape[2]
    listed = torch.zeros(KV_HEADS, blocks, blocks + 1, dtype=torch.bool)
    index = layout.index[0]
    listed.scatter_(2, index.masked_fill(index < 0, blocks), True)

    def seen(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return listed[head // (HEADS // KV_HEADS), q // BLOCK, k // BLOCK] & (k <= q)

    mask = create_block_mask(seen, 1, HEADS, tokens, tokens, device="cpu", BLOCK_SIZE=BLOCK)
    compiled = torch.compile(flex_attention)

    def quiet(call: Callable[[], object]) -> Callable[[], object]:
        return torch.no_grad()(call)

    calls = {
        "qwq": quiet(lambda: attend(query, key, value, layout)),
        "FlexAttention compiled": quiet(lambda: compiled(query, key, value, block_mask=mask, enable_gqa=True)),
        "SDPA enable_gqa": quiet(lambda: _grouped(query, key, value)),
        "SDPA repeated": quiet(lambda: _repeated(query, key, value)),
    }
    return calls, _products(layout, 2)


def _bidirectional() -> tuple[dict[str, Callable[[], object]], float]:
    """Both with their projections of queries, keys and values, eight key/value heads, and as many blocks in a list."""
    import transformers
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

    tokens = 4096
    peer_config = transformers.BigBirdConfig(
        hidden_size=HEADS * WIDTH,
        num_attention_heads=HEADS,
        block_size=BLOCK,
        num_random_blocks=3,
        max_position_embeddings=tokens,
        use_bias=False,
    )
    peer, ours = BigBirdBlockSparseAttention(peer_config).train(), Attention(_config(BIDIRECTIONAL, HEADS), 0)
    x, gradient = torch.randn(1, tokens, HEADS * WIDTH, requires_grad=True), torch.randn(1, tokens, HEADS * WIDTH)
    masks = transformers.BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(1, tokens), BLOCK)
    blocked, band, from_mask, to_mask = masks

    def sparse() -> None:
        query, (key, value) = ours.query(x), ours.key_value(x)
        heads = ours.attend(query, key, value, _tokens(tokens, False))
        heads.transpose(1, 2).flatten(2).backward(gradient)

    def bigbird() -> None:
        peer(x, band, from_mask, to_mask, blocked, blocked)[0].backward(gradient)

    return {"qwq": sparse, "BigBird eager": bigbird}, 0


def _decoding() -> tuple[dict[str, Callable[[], object]], float]:
    """One token after 32,767 others."""
    start, group = 32_767 - 24, HEADS // KV_HEADS  # in the middle of a block, as most tokens are
    modules = [_sparse(LEARNED, layer) for layer in range(LAYERS)]
    cache = KVCache(_config(LEARNED), 1, torch.float32)
    query, key, value = _inputs(start + 1, False)
    with torch.inference_mode():
        rows = cache.rows(0, 1)
        tokens = Tokens(*_begun(rows.begin(start, torch.device("cpu"))), rows)
        for layer, module in enumerate(modules):
            kept = rows.store(layer, key[:, :, :start], value[:, :, :start])
            module(query[:, :, :start], *kept, tokens)
        rows.end(start)
    query, key, value = (x[:, :, start:].clone() for x in (query, key, value))
    past = [(cache.keys[i, :, :, : start + 1], cache.values[i, :, :, : start + 1]) for i in range(LAYERS)]

    def sparse() -> None:
        rows = cache.rows(0, 1)
        tokens = Tokens(*_begun(rows.begin(1, torch.device("cpu"))), rows)
        for layer, module in enumerate(modules):
            module(query, *rows.store(layer, key, value), tokens)

    def dense(attention: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], object]:
        return torch.inference_mode()(lambda: [attention(keys, values) for keys, values in past])

    folded = query.view(1, KV_HEADS, group, WIDTH)
    calls = {
        "qwq": torch.inference_mode()(sparse),
        "SDPA enable_gqa": dense(lambda k, v: F.scaled_dot_product_attention(query, k, v, enable_gqa=True)),
        "SDPA folded": dense(lambda k, v: F.scaled_dot_product_attention(folded, k, v)),
        "products": dense(lambda k, v: (folded * WIDTH**-0.5 @ k.transpose(2, 3)).softmax(-1) @ v),
    }
    return calls, 0


def _begun(begun: tuple[Tensor, Tensor | None, bool]) -> tuple[Tensor, None, bool, Tensor | None]:
    """What `Tokens` takes from `CacheRows.begin`, without a rotary table."""
    positions, mask, causal = begun
    return positions, None, causal, mask
