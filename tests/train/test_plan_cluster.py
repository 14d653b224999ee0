"""`qwq plan`: layouts that fit, laid out on torch's fake process group."""

import json
import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from qwq.errors import UsageError
from qwq.model import build
from qwq.recipes import find
from qwq.train.plan import weights
from qwq.train.plan_cluster import GPUS, plan, print_plan


@pytest.fixture
def ranks():
    """Starts a process group of so many ranks, of which this process plays one; nothing is sent."""

    def start(count: int, rank: int) -> None:
        dist.init_process_group("fake", rank=rank, world_size=count, store=FakeStore())

    yield start
    if dist.is_initialized():
        dist.destroy_process_group()


def cut(parameter: torch.Tensor, name: str, mesh) -> torch.Tensor:
    """What a rank keeps of a parameter: experts by expert and by width, others by tensor, then all over data (FSDP)."""
    if ".experts." in name:
        return distribute_tensor(parameter, mesh["data", "expert", "tensor"], [Shard(1), Shard(0), Shard(1)]).to_local()
    rows = distribute_tensor(parameter, mesh["tensor"], [Shard(0)]).to_local()
    return distribute_tensor(rows, mesh["data", "expert"], [Shard(0), Shard(0)]).to_local()


@pytest.mark.parametrize(("gpus", "rank"), [(64, 0), (64, 63), (1024, 0), (1024, 517), (1024, 1023)])
def test_a_rank_keeps_the_weights_that_were_planned(gpus, rank, ranks):
    """`qwq-32b-sparse` on the meta device, cut with DTensor: bytes of a rank within 10 % of the plan."""
    found = plan(find("qwq-32b-sparse"), gpus, "h100")
    sizes = {name: found["layout"][name] for name in ("pipeline", "data", "expert", "tensor")}
    ranks(gpus, rank)
    mesh = init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    recipe = find("qwq-32b-sparse")
    with torch.device("meta"):
        model = build(recipe.model)
    kept = [0] * sizes["pipeline"]  # of this rank, were it on that stage
    for name, parameter in model.named_parameters():
        stage = 0 if "embed_tokens" in name else sizes["pipeline"] - 1
        if ".layers." in name:
            stage = int(name.split(".")[2]) * sizes["pipeline"] // recipe.model.num_hidden_layers
        kept[stage] += 4 * cut(parameter.data, name, mesh).numel()
    assert math.prod(sizes.values()) == gpus
    assert max(kept) == pytest.approx(found["memory_bytes"]["weights"], rel=0.1)


def test_the_large_sparse_model_has_the_size_it_is_named_for():
    found = plan(find("qwq-32b-sparse"), 64, "h100")
    assert 31e9 <= found["parameters"]["total"] <= 33e9
    assert found["parameters"]["active"] <= 4e9
    assert not found["layout"]["runnable"]
    assert 0 < found["memory_bytes"]["total"] <= found["memory_bytes"]["available"]


def test_time_and_energy_follow_the_token_budget():
    one, two = (plan(find("qwq-32b-sparse"), 64, "h100", tokens) for tokens in (10**9, 2 * 10**9))
    assert two["hours"] == pytest.approx(2 * one["hours"])
    assert one["energy_kwh"] == pytest.approx(one["hours"] * 64 * 0.7)
    products = 1e9 * one["flops_per_token"]["training"]
    assert one["step"]["mfu"] == pytest.approx(products / (one["hours"] * 3600 * 64 * GPUS["h100"].tflops * 1e12))


def test_a_plan_is_json_and_a_table(capsys):
    found = plan(find("qwq-small"), 1, "h100")
    assert json.loads(json.dumps(found)) == found
    print_plan(found)
    assert "not yet runnable" not in capsys.readouterr().out
    print_plan(plan(find("qwq-small"), 8, "h100"))
    assert "not yet runnable" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "gpus", "gpu", "message"),
    [
        ("qwq-32b", 1, "h100", "does not fit"),
        ("qwq-nano", 7, "h100", "do not divide"),
        ("qwq-nano", 1, "h1000", "no data sheet.*h100"),
    ],
)
def test_what_cannot_be_planned_is_said(recipe, gpus, gpu, message):
    with pytest.raises(UsageError, match=message):
        plan(find(recipe), gpus, gpu)


def test_every_weight_is_counted_once():
    recipe = find("qwq-32b-sparse")
    assert sum(w.numel for w in weights(recipe)) == recipe.model.num_parameters()
