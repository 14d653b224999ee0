"""The depth benchmark at toy size, and its task against a loop."""

import dataclasses

import torch

from qwq.bench import depth
from qwq.model import Decoder, ModelConfig


def test_the_label_of_a_question_is_where_its_steps_lead():
    ids, labels, hops = depth.graphs(5, torch.Generator().manual_seed(3))
    for row, wanted, steps in zip(ids.tolist(), labels.tolist(), hops.tolist(), strict=True):
        target = dict(divmod(token - depth.NODES, depth.NODES) for token in row[: depth.NODES])
        assert sorted(target) == sorted(target.values()) == list(range(depth.NODES))
        assert set(wanted[: depth.NODES]) == {-100}
        for token, node, count in zip(row[depth.NODES :], wanted[depth.NODES :], steps, strict=True):
            asked, at = divmod(token - depth.NODES * (1 + depth.NODES), depth.NODES)
            assert asked == count
            for _ in range(count):
                at = target[at]
            assert at == node


def test_hops_reports_every_number_of_steps(tmp_path):
    rows, more = depth.hops(2, tmp_path / "hops.pt", layers=2, test=2)
    again, same = depth.hops(2, tmp_path / "hops.pt", layers=2, test=2)
    assert [row.case for row in rows] == [f"early-exit-{count}-hops" for count in range(depth.HOPS)]
    assert (again, same) == (rows, more)  # the second time the model is taken from the file
    assert all(1 <= found["mean_depth"] <= 2 for found in more["by_hops"])


def test_speculation_compares_speed_and_tokens():
    config = ModelConfig(vocab_size=80, hidden_size=32, num_hidden_layers=3, exit_layers=(0,))
    model = Decoder(dataclasses.replace(config, intermediate_size=64))
    model.init_weights(0)
    prompts = torch.randint(80, (4, 12)).tolist()
    rows, more = depth.speculation(model.eval(), prompts, 2, 4)
    assert [row.peer for row in rows] == ["qwq-full-depth"] * len(depth.SETTINGS)
    assert more["compared"] == 4
    assert all(distance < 1e-3 for distance in more["distances"])
