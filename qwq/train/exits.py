"""How deep a model has to think: where its exits are sure enough, and whether they are right, by domain."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qwq.model.depth import exit_states
from qwq.train.gradients import precision


@dataclass(frozen=True)
class Exits:
    """Of one domain, with tokens leaving at the first exit whose best guess has at least the asked probability."""

    mean_depth: float  # layers
    early: float  # share of tokens that leave before the end
    agreement: float  # share of tokens whose guess is that of the full depth


@torch.no_grad()
def exits_by_domain(model: Any, batches: Mapping[str, Iterable[Tensor]], confidence: float) -> dict[str, Exits]:
    """Token ids [B, T] of every domain through a `Decoder`; every token reads the full states of those before it.

    So this is what early exit could save at most: while decoding, the layers that an earlier token skipped are filled
    in from its exit. `batches` is as `HeldOut` gives them.
    """
    config, device = model.config, next(model.parameters()).device
    depths = torch.tensor([layer + 1.0 for layer in config.exit_layers] + [config.num_hidden_layers], device=device)
    found = {}
    for domain, given in batches.items():
        tokens, depth, early, agreed = 0, 0.0, 0.0, 0.0
        for ids in given:
            with precision(device):
                states = exit_states(model, ids.to(device))
                best = torch.stack([model.lm_head(x).float().softmax(-1).amax(-1) for x in states])  # [exits, B, T]
                guess = torch.stack([model.lm_head(x).argmax(-1) for x in states])
            best[-1] = torch.inf
            chosen = (best >= confidence).int().argmax(0)  # [B, T], the first that is sure
            tokens += chosen.numel()
            depth += float(depths[chosen].sum())
            early += float((chosen < len(depths) - 1).sum())
            agreed += float((guess.gather(0, chosen[None])[0] == guess[-1]).sum())
        found[domain] = Exits(depth / tokens, early / tokens, agreed / tokens)
    return found
