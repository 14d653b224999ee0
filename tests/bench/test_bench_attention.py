"""The attention benchmark at toy size: every peer has its row, and the picture is drawn."""

import xml.etree.ElementTree as ElementTree

import pytest

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
