"""`qwq bench train`: tokens a second of whole training steps, this model and `transformers`' Qwen2 of one shape."""

import dataclasses
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from qwq.bench import common
from qwq.checkpoint.config_hf import to_hf
from qwq.model import PRESETS, Decoder, ModelConfig
from qwq.objectives import CausalLM
from qwq.train.gradients import compute_gradients
from qwq.train.start import compile_blocks

# Qwen2's shape exactly: bias on queries, keys and values, no norm on heads. (name, model, batch, tokens)
CASES: list[tuple[str, ModelConfig, int, int]] = [
    ("nano-b8-t512", dataclasses.replace(PRESETS["qwq-nano"].dense(), use_qk_norm=False, attention_bias=True), 8, 512),
    (
        "small-b2-t512",
        dataclasses.replace(PRESETS["qwq-small"].dense(), use_qk_norm=False, attention_bias=True),
        2,
        512,
    ),
]


def run(json_path: common.JsonPath = None, *, rounds: int = 5, cases: list[str] | None = None) -> dict:
    """Measure every case, interleaved: ours (eager and with compiled blocks), the peer eager and compiled.

    A step is forward, loss, backward, clipping and fused AdamW in fp32; all start from the same weights. Each row sets
    our faster setting beside one of the peer's; all rates are in `sweep`.
    """
    measured, rows, sweep = common.limits(), [], {}
    for name, config, batch, tokens in CASES:
        if cases is not None and name not in cases:
            continue
        ids = torch.randint(config.vocab_size, (batch, tokens + 1), generator=torch.Generator().manual_seed(0))
        steps = _steps(config, ids)
        for step in steps.values():  # what only the first steps pay: compilation, allocation
            step()
            step()
        amount = batch * tokens
        rates = common.interleave({k: _timed(s, amount) for k, s in steps.items()}, rounds)
        sweep[name] = {key: [round(r, 1) for r in values] for key, values in rates.items()}
        best = max((k for k in rates if k.startswith("qwq")), key=lambda k: statistics.median(rates[k]))
        flops = config.flops_per_token(tokens // 2, training=True)
        share = statistics.median(rates[best]) * flops / 1e9 / measured["gemm_gflop_s"]
        for peer in ("transformers-eager", "transformers-compiled"):
            if peer in rates:
                setting = f"fp32, AdamW fused, attention sdpa, {torch.get_num_threads()} threads; ours: {best}"
                row = common.compare(
                    name,
                    rates[best],
                    rates[peer],
                    peer=peer,
                    peer_setting=setting,
                    unit="tokens/s",
                    limit_fraction=share,
                )
                rows.append(row)
    return common.report("train", rows, measured, common.versions("transformers"), json_path, sweep=sweep)


def _timed(step: Callable[[], object], amount: int) -> Callable[[], float]:
    return lambda: common.rate(step, amount, repeats=2)


def _steps(config: ModelConfig, ids: Tensor) -> dict[str, Callable[[], object]]:
    """One training step of each contender, all with the same weights."""
    import transformers

    ours = Decoder(config)
    ours.init_weights(seed=0)
    compiled = Decoder(config)
    compiled.load_state_dict(ours.state_dict())
    steps = {"qwq-eager": _our_step(ours, ids)}
    names = ["transformers-eager"]
    if compile_blocks(compiled):
        steps["qwq-compiled"] = _our_step(compiled, ids)
        names.append("transformers-compiled")
    values = to_hf(config)
    for name in names:
        peer_config = transformers.Qwen2Config(**{k: v for k, v in values.items() if k != "architectures"})
        peer_config._attn_implementation = "sdpa"
        peer_config.use_cache = False
        peer = transformers.Qwen2ForCausalLM(peer_config).float().train()
        peer.load_state_dict(ours.state_dict())
        call = torch.compile(peer) if name.endswith("compiled") else peer
        steps[name] = _peer_step(peer, call, ids)
    return steps


def _optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def _our_step(model: Decoder, ids: Tensor) -> Callable[[], object]:
    optimizer, batch = _optimizer(model), (ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    def step() -> None:
        compute_gradients(model, [batch], CausalLM())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _peer_step(model: torch.nn.Module, call: Callable, ids: Tensor) -> Callable[[], object]:
    optimizer, inputs, labels = _optimizer(model), ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def step() -> None:
        logits = call(input_ids=inputs).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
