"""`qwq quickstart`, whole, with seconds of training instead of minutes."""

import json
import subprocess
import sys

import pytest


def quickstart(out, *flags):
    command = [sys.executable, "-m", "qwq.cli", "quickstart", "--out", str(out), "--no-serve", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.mark.timeout(1200)
def test_from_public_text_to_a_report_and_once_more(smollm2_path, tmp_path):
    """`smollm2_path` skips this where the package index cannot be reached."""
    first = quickstart(tmp_path, "--minutes", "0.3")
    assert first.returncode == 0, first.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    page = (tmp_path / "report.html").read_text()
    assert {"en", "zh", "code"} == set(report["scores"])
    assert all(0 < s["bits_per_byte"] < 8 for s in report["scores"].values())
    assert all(sample["text"] for sample in report["samples"].values())
    assert "<polyline" in page
    assert "<script" not in page
    assert all(name in page for name in report["corpus"]["sources"])

    again = quickstart(tmp_path, "--minutes", "0.3")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("(done before)") == 3
    assert json.loads((tmp_path / "report.json").read_text())["scores"] == report["scores"]
