"""`qwq plan`: what a run on many GPUs would take, before anything is rented. Nothing is started.

A layout is a mesh of four dimensions, from the outermost: pipeline stages, data, expert and tensor parallel. Weights,
gradients and optimizer state are cut over data as in FSDP (ZeRO-3, arXiv:1910.02054): those of experts over `data`, all
others over `data` x `expert`. The one that finishes a step soonest among those that fit is taken.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from qwq.errors import UsageError
from qwq.recipe import Recipe
from qwq.train.plan import Weight, activation_bytes, head_bytes, parameters, weights

KERNELS = 0.45  # of the GPU's bf16 peak that a step reaches where nothing waits; MFU below also has what waits
NODE = 8  # GPUs joined by the fast link
USABLE = 0.9  # of the memory: the rest is the allocator's and NCCL's


@dataclass(frozen=True)
class GPU:
    """From the maker's data sheet; rates are per GPU and, for links, in one direction."""

    tflops: float  # bf16, dense
    memory_gb: float
    memory_gb_s: float
    watts: float
    link_gb_s: float  # to its neighbours in the node
    network_gb_s: float  # beyond the node: a 200, 400 or 100 Gbit/s adapter for each GPU (assumed)


GPUS = {
    "a100": GPU(312, 80, 2039, 400, 300, 25),
    "h100": GPU(989.4, 80, 3350, 700, 450, 50),
    "h200": GPU(989.4, 141, 4800, 700, 450, 50),
    "b200": GPU(2250, 180, 7700, 1000, 900, 50),
    "mi300x": GPU(1307.4, 192, 5300, 750, 448, 50),
    "l40s": GPU(362, 48, 864, 350, 32, 12.5),
}


@dataclass(frozen=True)
class Layout:
    """Sizes of the mesh, outermost first, whose product is the number of GPUs; and sequences a rank takes at a time."""

    pipeline: int
    data: int
    expert: int
    tensor: int
    micro_batch_size: int

    @property
    def mesh(self) -> dict[str, int]:
        """The four dimensions of `torch.distributed.device_mesh.init_device_mesh`."""
        return {"pipeline": self.pipeline, "data": self.data, "expert": self.expert, "tensor": self.tensor}

    def stage(self, weight: Weight, layers: int) -> int:
        """The pipeline stage a parameter is on: embeddings on the first, final norm and head on the last."""
        if weight.layer is not None:
            return weight.layer * self.pipeline // layers
        return 0 if "embed_tokens" in weight.name else self.pipeline - 1

    def whole(self, weight: Weight) -> int:
        """Numbers of a parameter on a rank while its block computes."""
        return weight.numel // (self.tensor * (self.expert if weight.expert else 1))

    def micro_batches(self, recipe: Recipe) -> int:
        """How many a rank takes in a step."""
        return recipe.training.batch_size // (self.data * self.expert * self.micro_batch_size)


def plan(recipe: Recipe, gpus: int, gpu: str, tokens: int | None = None) -> dict:
    """Parameters, memory a rank, layout, traffic, time and energy of `tokens` tokens (the recipe's) on `gpus` GPUs.

    Plain JSON values; bytes, seconds, hours, kWh. `UsageError` for an unknown GPU, or where no layout fits. Sequences
    at a time are chosen too: `training.batch_size` decides what is learned, `training.micro_batch_size` does not.
    """
    if gpu not in GPUS:
        raise UsageError(f"no data sheet for GPU {gpu!r}: known are {', '.join(GPUS)}")
    model, training, card, counted = recipe.model, recipe.training, GPUS[gpu], weights(recipe)
    found = [(layout, memory(recipe, layout, counted)) for layout in layouts(recipe, gpus)]
    if not found:
        raise UsageError(f"{gpus} GPUs do not divide batches of {training.batch_size}: change --gpus or the batch size")
    room = USABLE * card.memory_gb * 1e9
    fits = [(_step(recipe, layout, card, counted), layout, m) for layout, m in found if sum(m.values()) <= room]
    if not fits:
        least = min(sum(m.values()) for _, m in found)
        raise UsageError(
            f"{recipe.name} does not fit on {gpus} x {gpu}: at least {least / 1e9:.0f} GB a rank, of "
            f"{room / 1e9:.0f} usable; give more --gpus"
        )
    soonest = min(step["seconds"] for step, _, _ in fits)
    fast = [f for f in fits if f[0]["seconds"] <= 1.02 * soonest]  # of equals, the one with the fewest kinds
    step, layout, taken = min(fast, key=lambda f: (sum(n > 1 for n in f[1].mesh.values()), f[0]["seconds"]))
    a_step = training.batch_size * recipe.data.seq_len
    tokens = a_step * training.steps if tokens is None else tokens
    hours = tokens / a_step * step["seconds"] / 3600
    cache = model.kv_bytes_per_token(2) / layout.tensor / layout.pipeline
    flops = {"forward": _flops(recipe), "training": _flops(recipe, training=True)}
    return {
        "recipe": recipe.name,
        "gpus": gpus,
        "gpu": {"name": gpu, **asdict(card)},
        "parameters": parameters(model),
        "flops_per_token": flops,
        "layout": {**asdict(layout), "runnable": gpus == 1},
        "memory_bytes": {**taken, "total": sum(taken.values()), "available": int(card.memory_gb * 1e9)},
        "cache_bytes": {"per_token": cache, "per_sequence": cache * model.max_position_embeddings},
        "step": {"tokens": a_step, "micro_batches": layout.micro_batches(recipe), **step},
        "tokens": tokens,
        "hours": hours,
        "gpu_hours": hours * gpus,
        "energy_kwh": hours * gpus * card.watts / 1000,
    }


def _flops(recipe: Recipe, *, training: bool = False) -> int:
    return recipe.model.flops_per_token(recipe.data.seq_len // 2, training=training)


def layouts(recipe: Recipe, gpus: int) -> Iterator[Layout]:
    """Every way to divide the work evenly; tensor parallel stays within a node."""
    model, batch = recipe.model, recipe.training.batch_size
    sizes = [_divisors(model.num_hidden_layers), _divisors(max(1, model.num_experts)), (1, 2, 4, 8)]
    for pipeline, expert, tensor in itertools.product(*sizes):
        data, left = divmod(gpus, pipeline * expert * tensor)
        if not data or left or model.num_key_value_heads % tensor or batch % (data * expert):
            continue
        for micro_batch_size in _divisors(batch // (data * expert)):
            yield Layout(pipeline, data, expert, tensor, micro_batch_size)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def memory(recipe: Recipe, layout: Layout, counted: list[Weight]) -> dict[str, int]:
    """Bytes on the fullest rank: fp32 weights under bf16 products, as `qwq train` has them on a GPU."""
    layers, stages = recipe.model.num_hidden_layers, []
    shards = layout.data * layout.expert * layout.tensor
    own: list[list[Weight]] = [[] for _ in range(layout.pipeline)]
    for weight in counted:
        own[layout.stage(weight, layers)].append(weight)
    for stage, mine in enumerate(own):
        blocks = [i for i in range(layers) if i * layout.pipeline // layers == stage]
        units = dict.fromkeys([*blocks, None], 0)
        for weight in mine:
            units[weight.layer] += layout.whole(weight)
        waiting = min(layout.pipeline - stage, layout.micro_batches(recipe))  # 1F1B: micro-batches under way
        tokens = layout.micro_batch_size * recipe.data.seq_len
        here = {
            "weights": 4 * sum(w.numel for w in mine) // shards,
            "gradients": 4 * sum(w.numel for w in mine if w.state) // shards,
            "optimizer": 4 * sum(w.numel * w.state for w in mine) // shards,
            "gathered": 2 * 2 * sum(sorted(units.values())[-2:]),  # in bf16, with gradients: this block and the next
            "activations": activation_bytes(recipe, blocks, tokens, gpu=True) * waiting // layout.tensor,
            "head": (stage == layout.pipeline - 1) * head_bytes(recipe, tokens, gpu=True) // layout.tensor,
        }
        stages.append(here)
    return max(stages, key=lambda here: sum(here.values()))


def _step(recipe: Recipe, layout: Layout, card: GPU, counted: list[Weight]) -> dict:
    """Seconds of one optimizer step and what a rank receives in it, by kind, in bf16.

    FSDP's traffic runs beside the products; the others are waited for, as is the pipeline when it fills and drains.
    """
    model, micro_batches, tensor = recipe.model, layout.micro_batches(recipe), layout.tensor
    tokens = recipe.training.batch_size * recipe.data.seq_len
    gpus = math.prod(layout.mesh.values())
    layers = model.num_hidden_layers / layout.pipeline
    routed = sum(map(model.is_moe, range(model.num_hidden_layers))) / layout.pipeline
    dense = sum(layout.whole(w) for w in counted if not w.expert) / layout.pipeline
    experts = sum(layout.whole(w) for w in counted if w.expert) / layout.pipeline
    vectors = 2 * tokens // (layout.data * layout.expert) * model.hidden_size  # of the tokens that a tensor group has

    def received(size: int, amount: float) -> float:
        return amount * (size - 1) / size

    def rate(size: int, stride: int, *, together: bool = True) -> float:
        """A ring enters a node through the adapters of all its members there; other messages through their own."""
        if size * stride <= NODE:
            return card.link_gb_s * 1e9
        return min(card.link_gb_s, card.network_gb_s * (max(1, NODE // stride) if together else 1)) * 1e9

    # Weights come twice and gradients go once a micro-batch; a block has four all-reduces; tokens go out and back, and
    # so do their gradients.
    data, expert, traffic = layout.data, layout.expert, 3 * 2 * micro_batches
    sent = {
        "fsdp": received(data * expert, traffic * dense),
        "fsdp_experts": received(data, traffic * experts),
        "tensor": received(tensor, 4 * 2 * vectors * layers),
        "expert": received(expert, 4 * vectors * model.num_experts_per_tok * routed / tensor),
        "pipeline": 2 * vectors / tensor if layout.pipeline > 1 else 0.0,
    }
    seconds = {
        "fsdp": sent["fsdp"] / rate(data * expert, tensor),
        "fsdp_experts": sent["fsdp_experts"] / rate(data, expert * tensor),
        "tensor": sent["tensor"] / rate(tensor, 1),
        "expert": sent["expert"] / rate(expert, tensor, together=False),
        "pipeline": sent["pipeline"] / rate(layout.pipeline, data * expert * tensor, together=False),
    }
    products = tokens * _flops(recipe, training=True) / gpus / (card.tflops * 1e12)
    compute = products / KERNELS * (1 + (layout.pipeline - 1) / micro_batches)
    waited = seconds["tensor"] + seconds["expert"] + seconds["pipeline"]
    total = max(compute, seconds["fsdp"] + seconds["fsdp_experts"]) + waited
    traffic_bytes = {kind: int(size) for kind, size in sent.items()}
    return {"seconds": total, "mfu": products / total, "traffic_bytes": traffic_bytes, "traffic_seconds": seconds}


def print_plan(found: dict) -> None:
    """The result of `plan` as a table for a person."""
    layout, step, taken, count = found["layout"], found["step"], found["memory_bytes"], found["parameters"]
    flops, cache = found["flops_per_token"], found["cache_bytes"]
    sizes = " x ".join(f"{name} {layout[name]}" for name in ("pipeline", "data", "expert", "tensor"))
    rows = [
        ("parameters", f"{count['total']:,} in total, {count['active']:,} active a token"),
        ("FLOPs a token", f"{flops['training']:.3g} training, {flops['forward']:.3g} forward"),
        ("layout", sizes),
        *([] if layout["runnable"] else [("", "not yet runnable")]),
        ("memory a rank", f"{taken['total'] / 1e9:.1f} of {taken['available'] / 1e9:.0f} GB"),
        *((f"  {kind}", f"{taken[kind] / 1e9:.2f} GB") for kind in taken if kind not in ("total", "available")),
        ("cache, bf16", f"{cache['per_token'] / 1e3:.1f} kB a token and rank, "
                        f"{cache['per_sequence'] / 1e9:.2f} GB a full context"),
        ("step", f"{step['tokens']:,} tokens in {step['seconds']:.3g} s, MFU {step['mfu']:.0%}"),
        ("  on a rank", f"{step['micro_batches']} times {layout['micro_batch_size']} sequences"),
        *((f"  {kind.replace('_', ' of ')} traffic", f"{size / 1e9:.3g} GB, {step['traffic_seconds'][kind]:.3g} s")
          for kind, size in step["traffic_bytes"].items() if size),
        ("budget", f"{found['tokens'] / 1e9:,.3g} billion tokens"),
        ("  time", f"{found['hours'] / 24:,.3g} days, {found['gpu_hours']:,.0f} GPU hours"),
        ("  energy", f"{found['energy_kwh']:,.0f} kWh for the GPUs"),
    ]  # fmt: skip
    table = Table(title=f"{found['recipe']} on {found['gpus']} x {found['gpu']['name']}", show_header=False)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(
        f"Assumed: {KERNELS:.0%} of the bf16 peak where nothing waits, nodes of {NODE}, links and watts as on the data "
        "sheet, GPUs at full power; hosts, cooling, restarts and evaluation not counted.",
        highlight=False,
    )
