"""LAMBADA and WikiText of smollm2 are those of `transformers` on the same dequantised weights."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from qwq.evals.files import read_text

DATA = Path(os.environ.get("QWQ_DATA_DIR", "data"))
SCRIPT = Path(__file__).parents[2] / "docs/agreement.py"


@pytest.mark.skipif(not (DATA / "wikitext2/valid.txt").is_file(), reason="QWQ_DATA_DIR has no wikitext2/valid.txt")
def test_both_tasks_agree_to_a_tenth_of_a_point(smollm2_path, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("agreement", SCRIPT)
    agreement = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(agreement)
    (tmp_path / "wikitext2").mkdir()
    (tmp_path / "wikitext2/valid.txt").write_text(read_text(DATA / "wikitext2/valid.txt")[:3000])
    (tmp_path / "lambada").symlink_to(DATA / "lambada")
    for module in (agreement, importlib.import_module("qwq.evals.requests")):
        monkeypatch.setattr(module, "WINDOW", 300)  # more than one window, of a short text
    found = agreement.compare("smollm2", tmp_path, limit=16, articles=1)
    print(json.dumps(found, indent=1))
    assert found["lambada"]["accuracy"]["ours"] == found["lambada"]["accuracy"]["transformers"]
    for task, metric in (("lambada", "perplexity"), ("wikitext", "bits_per_byte"), ("wikitext", "word_perplexity")):
        assert found[task][metric]["ours"] == pytest.approx(found[task][metric]["transformers"], rel=1e-4)
