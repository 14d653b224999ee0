"""Experts from a dense model: sparse upcycling (arXiv:2212.05055)."""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from qwq.checkpoint import Checkpoint
from qwq.checkpoint.huggingface import build
from qwq.errors import UsageError
from qwq.model import build as assemble


def upcycle(
    dense: Checkpoint,
    num_experts: int,
    *,
    num_experts_per_tok: int = 2,
    decoder_sparse_step: int = 1,
    router_bias_update_rate: float = 0.001,
    seed: int = 0,
) -> Checkpoint:
    """A mixture of experts, each of which starts as the feed-forward of its layer in a `dense` model.

    The weights of a token's experts sum to 1, so the function is the dense model's until training moves the experts
    apart; only the routers are drawn at random (`seed`). `UsageError` if `dense` has experts, biases in its
    feed-forwards or no gates, or if the numbers of experts make no sense.
    """
    old = dense.config
    if old.num_experts or old.mlp_bias or not old.gated_mlp:
        raise UsageError(f"{dense.name} cannot be upcycled: it has experts, or feed-forwards with biases or no gate")
    try:
        config = dataclasses.replace(
            old,
            num_experts=num_experts,
            num_experts_per_tok=num_experts_per_tok,
            moe_intermediate_size=old.intermediate_size,
            norm_topk_prob=True,
            decoder_sparse_step=decoder_sparse_step,
            router_bias_update_rate=router_bias_update_rate,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    given, generator = dict(dense.model.named_parameters()), torch.Generator().manual_seed(seed)
    sample = next(iter(given.values()))
    with torch.device("meta"):
        wanted = dict(assemble(config).named_parameters())

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, parameter in wanted.items():
            block, _, part = name.rpartition(".mlp.")
            if name in given:
                yield name, given[name].detach().clone()
            elif part == "experts.gate_up_proj":
                both = [given[f"{block}.mlp.{half}_proj.weight"].detach() for half in ("gate", "up")]
                yield name, torch.cat(both).expand(parameter.shape).clone()
            elif part == "experts.down_proj":
                yield name, given[f"{block}.mlp.down_proj.weight"].detach().expand(parameter.shape).clone()
            elif part == "gate.e_score_correction_bias":
                yield name, sample.new_zeros(parameter.shape)
            else:
                router = torch.empty(parameter.shape).normal_(0, config.initializer_range, generator=generator)
                yield name, router.to(sample)

    model = build(config, tensors(), None, dense.path).train(dense.model.training)
    return dataclasses.replace(dense, config=config, model=model, recipe=None, quantised={})
