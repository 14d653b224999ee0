"""The arithmetic of a comparison, and the JSON that it ends in."""

import json

from qwq.bench import common


def test_rounds_are_interleaved_and_the_order_turns():
    """No contender is always first."""
    calls = []

    def contender(name):
        return lambda: calls.append(name) or 1.0

    rates = common.interleave({name: contender(name) for name in "abc"}, rounds=3)
    assert "".join(calls) == "abcbcacab"
    assert rates == {"a": [1.0] * 3, "b": [1.0] * 3, "c": [1.0] * 3}


def test_ratio_is_the_median_of_the_rounds():
    """A slow minute that hits both leaves it as it is; the medians of the rates alone would say 1.5."""
    row = common.compare("c", [20.0, 2.0, 30.0], [10.0, 1.0, 20.0], peer="p", peer_setting="", unit="tokens/s")
    assert (row.ratio, row.spread) == (2.0, (1.5, 2.0))
    assert (row.ours, row.theirs) == (20.0, 10.0)


def test_json_has_the_keys_of_the_contract(tmp_path):
    """bench, machine, versions, limits, rows with a limit_fraction; the file is what was returned."""
    row = common.compare("c", [2.0], [1.0], peer="p", peer_setting="s", unit="u", limit_fraction=0.5)
    path = tmp_path / "new" / "out.json"
    limits = {"read_gb_s": 1.0, "gemm_gflop_s": 2.0}
    result = common.report("x", [row], limits, common.versions("torch"), path, sweep={"a": 1})
    saved = json.loads(path.read_text())
    assert saved == json.loads(json.dumps(result))
    assert set(saved) == {"bench", "machine", "versions", "limits", "rows", "sweep"}
    keys = {"case", "peer", "peer_setting", "ours", "theirs", "unit", "ratio", "spread", "limit_fraction"}
    assert set(saved["rows"][0]) == keys
    assert saved["machine"]["cores"] >= 1
