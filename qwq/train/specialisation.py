"""Who does what in a mixture of experts: the load of every expert by domain, and what it tells about the domain."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qwq.kernels.experts import count
from qwq.model import moe
from qwq.train.gradients import precision


@dataclass(frozen=True)
class Specialisation:
    """`load` [layers, domains, E]: share of a domain's routed tokens that each expert had; a row sums to 1."""

    layers: list[str]  # names of the blocks that have experts
    domains: list[str]
    load: Tensor
    bits: list[float]  # by layer, mutual information of domain and expert: 0 if all domains are routed alike


@torch.no_grad()
def expert_load_by_domain(model: nn.Module, batches: Mapping[str, Iterable[Tensor]]) -> Specialisation:
    """Route token ids [B, T] of every domain ("en", "zh", "code") through `model.hidden` and count.

    All domains weigh the same, whatever their number of tokens, so the mutual information is at most log2(domains)
    bits. Few tokens overstate it, by about (domains - 1) (E - 1) / (1.4 S) bits for S routed pairs in all. A model
    without experts has no layers here.
    """
    routers, device = dict(moe.routers(model)), next(model.parameters()).device
    loads = []
    for given in batches.values():
        counts = {router: torch.zeros(len(router.weight), device=device) for router in routers.values()}

        def note(router: moe.Router, args: tuple, out: tuple[Tensor, Tensor], counts: dict = counts) -> None:
            counts[router] += count(out[1], len(counts[router]))

        hooks = [router.register_forward_hook(note) for router in counts]
        try:
            for ids in given:
                with precision(device):
                    model.hidden(ids.to(device))  # type: ignore[operator]
        finally:
            for hook in hooks:
                hook.remove()
        loads.append(torch.stack(list(counts.values())) if counts else torch.empty(0, 0))
    load = torch.stack(loads, dim=1).cpu()
    load = load / load.sum(-1, keepdim=True)
    return Specialisation(list(routers), list(batches), load, [mutual_information(layer) for layer in load])


def mutual_information(load: Tensor) -> float:
    """Bits that the expert of a token tells about its domain: load [domains, E], rows summing to 1, domains alike."""
    mean = load.mean(0)
    terms = torch.where(load > 0, load * (load / mean).log2(), 0.0)
    return float(terms.sum(-1).mean())
