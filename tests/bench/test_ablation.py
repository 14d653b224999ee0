"""The ablation changes one part at a time, goes on where it was, and says in its page what the numbers say."""

import dataclasses
import math
import xml.etree.ElementTree as ElementTree

import pytest
from shared_text import sentences

from qwq.bench import ablation, ablation_page, runs
from qwq.data.documents import Document, DocumentWriter
from qwq.data.shards import tokenize
from qwq.model.presets import extended
from qwq.recipe import DataConfig, ObjectiveConfig, Recipe, TrainingConfig


def test_every_arm_changes_one_part_and_the_last_one_all():
    arms = {name: recipe.to_dict() for name, recipe in ablation.arms().items()}
    changed = {
        name: {key for key, value in recipe["model"].items() if value != arms["dense"]["model"][key]}
        for name, recipe in arms.items()
    }
    assert changed == {
        "dense": set(),
        "sparse": {"attention_patterns"},
        "experts": {"num_experts", "router_bias_update_rate"},
        "exits": {"exit_layers"},
        "full-heads": {"num_key_value_heads"},
        "layer-norm": {"norm_type"},
        "sinusoidal": {"position_embedding"},
        "extended": {"attention_patterns", "num_experts", "router_bias_update_rate", "exit_layers"},
    }
    assert all(recipe["training"] == arms["dense"]["training"] for recipe in arms.values())
    assert {arm for pair in ablation.PARTS.values() for arm in pair} == set(arms)


@pytest.fixture
def folder(tokenizer, tmp_path):
    """Shards of made-up sentences, and held-out documents of which one is long."""
    lines = sentences(600)
    parts = {"documents/a": lines[:400], "heldout/en": [" ".join(lines[400:440]), *lines[440:500]]}
    for name, texts in parts.items():
        (tmp_path / name).parent.mkdir()
        with DocumentWriter(tmp_path / f"{name}.jsonl.zst") as writer:
            for text in texts:
                writer.write(Document(text, "made-up", language="en"))
    tokenize(tmp_path, tokenizer, tmp_path / "tokens", progress=False)
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path


def test_an_arm_is_read_at_its_exits_and_on_long_documents(folder, tiny_config, monkeypatch):
    monkeypatch.setattr(ablation, "LONG", 256)
    monkeypatch.setattr(ablation, "RANGES", (0, 64, 128, 256))
    recipe = Recipe(
        model=extended(dataclasses.replace(tiny_config, num_hidden_layers=4), num_experts=4),
        data=DataConfig(seq_len=64),
        objective=ObjectiveConfig(early_exit_loss_coef=0.1),
        training=TrainingConfig(batch_size=2, micro_batch_size=2),
    )
    result = ablation.fit(ablation._job("extended", 0, 30, recipe), str(folder))
    untrained = ablation.fit(ablation._job("extended", 0, 1, recipe), str(folder))
    assert result["bits_per_byte"]["mean"] < untrained["bits_per_byte"]["mean"]
    assert result["tokens"] == 30 * 2 * 64
    assert set(result["by_depth"]) == {"1", "2"}
    assert len({*result["by_depth"].values(), result["bits_per_byte"]["mean"]}) == 3
    pieces, whole, yarn = result["by_range"].values()
    assert pieces[0] == whole[0] != yarn[0]  # the first 64 tokens are read alike; YaRN turns them otherwise
    assert pieces[1] != whole[1]
    assert len(whole) == 3


def test_finished_runs_are_not_done_again(tmp_path):
    """Kept results answer for their jobs, whatever the order; nothing is trained."""
    jobs = [ablation._job("dense", seed, 5, ablation.arms()["dense"]) for seed in range(3)]
    lines = [f'{{"job": {runs._key(job)}, "number": {number}}}\n' for number, job in enumerate(jobs)]
    (tmp_path / "runs.jsonl").write_text("".join(reversed(lines)))

    def never(job, folder):
        raise AssertionError(job)

    assert [result["number"] for result in runs.train_all(jobs, tmp_path, never)] == [0, 1, 2]


def found(bits: dict[str, list[float]]) -> dict:
    """What the bench hands to the page, of made-up runs: mean bits per byte of every arm, by seed."""
    results = []
    for arm, values in [*bits.items(), ("dense", [b - 0.1 for b in bits["dense"]])]:
        for seed, value in enumerate(values):
            steps = 100 if len(results) < 3 * len(bits) else 140
            by_range = {"in pieces": [2.0, 2.1], "whole": [2.0, 2.5], "whole, YaRN": [2.1, 2.2]}
            result = {"job": {"arm": arm, "seed": seed, "steps": steps}, "bits_per_byte": {"mean": value}}
            more = {"by_depth": {"1": value + 0.5, "2": value + 0.25}, "by_range": by_range, "tokens": 102400}
            results.append(result | more)
    seconds = dict.fromkeys(bits, 0.5) | {"experts": 0.7, "full-heads": 0.6}
    parts = list(ablation._readings(results, seconds, 3))
    return {"runs": results, "steps": 100, "seeds": 3, "step_seconds": seconds, "parts": parts}


def test_equal_time_is_read_between_the_two_runs_of_the_dense_model():
    """An arm of 1.4 times the time meets the longer runs themselves; one of the same time the shorter ones."""
    bits = {arm: [2.00, 2.02, 1.98] for arm in ablation.arms()}
    parts = {part["part"]: part["readings"] for part in found(bits)["parts"]}
    assert parts["experts"]["equal time"][1] == pytest.approx([1.90, 1.92, 1.88])
    assert parts["sparse attention"]["equal time"] == parts["sparse attention"]["equal tokens"]
    dense, full = parts["grouped queries (5 heads over 1)"]["equal time"]
    assert full == [2.00, 2.02, 1.98]
    assert dense[0] == pytest.approx(2.00 - 0.1 * math.log(1.2) / math.log(1.4))


def test_the_page_says_what_helps_and_what_does_not(tmp_path):
    page = tmp_path / "ablation.md"
    page.write_text(f"# Before\n\n{ablation_page.BEGIN}\nold\n{ablation_page.END}\nafter\n")
    bits = {arm: [2.00, 2.02, 1.98] for arm in ablation.arms()}
    bits |= {"experts": [1.90, 1.92, 1.88], "full-heads": [1.95, 1.97, 1.93], "sparse": [2.03, 1.97, 2.02]}
    for _ in range(2):  # written twice, it is the same
        ablation_page.write(page, found(bits), (0, 512, 4096))
        text = page.read_text()
        assert text.startswith("# Before")
        assert text.endswith("after\n")
        assert "old" not in text
        assert text.count("| experts |") == 1
    assert "**experts**: at equal tokens it helps (+5.0 %)" in text
    assert "**grouped queries (5 heads over 1)**: at equal tokens it hurts" in text
    assert "**sparse attention**: at equal tokens it makes no difference" in text
    assert "2.500 (2.500 to 2.500)" in text
    picture = ElementTree.parse(page.with_suffix(".svg")).getroot()
    assert len(picture.findall("{http://www.w3.org/2000/svg}circle")) == 2 + 2 * len(ablation.PARTS)
