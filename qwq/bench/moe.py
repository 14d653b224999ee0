"""`qwq bench moe`: a layer of experts, forward and backward, beside a dense one of equal FLOPs and `transformers`'."""

import dataclasses
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from qwq.bench import common
from qwq.checkpoint.config_hf import to_hf
from qwq.model import ModelConfig
from qwq.model.layers import MLP
from qwq.model.moe import MoE

TOKENS = 1024
SHAPE = ModelConfig(
    vocab_size=8,
    hidden_size=256,
    num_hidden_layers=1,
    use_qk_norm=True,
    num_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=512,
    initializer_range=0.05,
)
CASES = {
    "8-experts-top-2": SHAPE,
    "64-experts": dataclasses.replace(SHAPE, num_experts=64),
    "64-experts-top-8": dataclasses.replace(SHAPE, num_experts=64, num_experts_per_tok=8, moe_intermediate_size=128),
}
BATCHED = (
    32  # tokens that batched_mm is given: it copies the weights of every pair of token and expert (3 GB for 1,024)
)


def run(json_path: common.JsonPath = None, *, rounds: int = 9, cases: list[str] | None = None) -> dict:
    """Every case, interleaved: ours, a dense gated layer that multiplies as much for a token, and `transformers`'
    Qwen3-MoE block with the same weights in each of its experts implementations.

    Forward and backward to the input and to all weights, fp32. The row of `transformers` is the fastest of its three;
    all rates are in `sweep` (of what is ten times slower, the one of the first call).
    """
    measured, rows, sweep = common.limits(), [], {}
    for name, config in CASES.items():
        if cases is not None and name not in cases:
            continue
        calls = _contenders(config)
        first = {key: call() for key, call in calls.items()}
        slow = {key for key, rate in first.items() if rate < 0.1 * first["qwq"]}  # once is enough to see that
        rates = common.interleave({k: call for k, call in calls.items() if k not in slow}, rounds)
        sweep[name] = {key: [round(r, 1) for r in rates.get(key, [first[key]])] for key in calls}
        inner = config.num_experts_per_tok * config.moe_intermediate_size
        flops = 2 * 3 * config.hidden_size * inner * 3  # of a token, forward and backward
        share = statistics.median(rates["qwq"]) * flops / 1e9 / measured["gemm_gflop_s"]
        fastest = max((k for k in rates if k.startswith("transformers")), key=lambda k: statistics.median(rates[k]))
        threads = f"{TOKENS} tokens, fp32, {torch.get_num_threads()} threads"
        peers = {"dense": f"a gated layer {inner} wide, {threads}", fastest: f"Qwen3MoeSparseMoeBlock, {threads}"}
        for peer, setting in peers.items():
            rows.append(
                common.compare(name, rates["qwq"], rates[peer], peer=peer, peer_setting=setting, unit="tokens/s",
                               limit_fraction=share)
            )  # fmt: skip
    return common.report("moe", rows, measured, common.versions("transformers"), json_path, sweep=sweep)


def _contenders(config: ModelConfig) -> dict[str, Callable[[], float]]:
    """The rate of each in tokens a second, all with the same input; those with experts have the same weights."""
    import transformers

    torch.manual_seed(0)
    ours, dense = MoE(config), MLP(config, config.num_experts_per_tok * config.moe_intermediate_size)
    for parameter in (*ours.parameters(), *dense.parameters()):
        nn.init.normal_(parameter, 0, config.initializer_range)
    x = torch.randn(1, TOKENS, config.hidden_size)
    calls = {"qwq": _timed(ours, x), "dense": _timed(dense, x)}
    values = {k: v for k, v in to_hf(config).items() if k not in ("architectures", "model_type")}
    for form in ("eager", "grouped_mm", "batched_mm"):
        whole = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**values)).float()
        whole.set_experts_implementation(form)
        peer = whole.model.layers[0].mlp
        peer.load_state_dict(ours.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(peer(x[:, :BATCHED]), ours(x[:, :BATCHED]), rtol=1e-3, atol=1e-4)
        calls[f"transformers-{form}"] = _timed(peer, x[:, :BATCHED] if form == "batched_mm" else x)
    return calls


def _timed(layer: nn.Module, x: Tensor) -> Callable[[], float]:
    x = x.clone().requires_grad_()
    grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    leaves = (x, *layer.parameters())

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        layer(x).backward(grad)

    return lambda: common.rate(step, x.shape[1], repeats=5)
