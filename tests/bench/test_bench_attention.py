"""The attention benchmark at toy size: its contenders compute the same, and its picture is drawn."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch

from qwq.bench import attention, common
from qwq.bench.picture import log_log


@pytest.fixture(autouse=True)
def _no_limits(monkeypatch):
    monkeypatch.setattr(common, "limits", lambda: {"read_gb_s": 1.0, "gemm_gflop_s": 1.0})


def test_a_case_has_a_row_for_every_peer():
    found = attention.run(rounds=1, cases=["4096-fwd-bwd-bidirectional"])
    assert [(row["case"], row["peer"]) for row in found["rows"]] == [("4096-fwd-bwd-bidirectional", "BigBird")]


def test_growth_is_measured_and_drawn():
    seconds = attention.growth((256, 512), rounds=1)
    assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())
    drawn = ElementTree.fromstring(log_log("Attention", "tokens", "seconds", (256, 512), seconds))
    words = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {*seconds, "tokens", "seconds"} <= set(words)


def test_dense_forms_of_decoding_agree():
    """Query heads of a group folded into rows, heads repeated, plain products: one function."""
    query, key, value = attention._inputs(64, False)
    last = query[:, :, -1:]
    folded = last.view(1, attention.KV_HEADS, -1, attention.WIDTH)
    a = torch.nn.functional.scaled_dot_product_attention(last, key, value, enable_gqa=True)
    b = (folded * attention.WIDTH**-0.5 @ key.transpose(2, 3)).softmax(-1) @ value
    torch.testing.assert_close(a, b.view_as(a))
