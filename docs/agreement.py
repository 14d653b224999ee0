"""LAMBADA and WikiText of a model, measured here and by `transformers` on the same weights, side by side.

OMP_NUM_THREADS=2 python docs/agreement.py --model smollm2 --data-dir DATA --limit 500 --articles 8

The second column is computed the plain way: `AutoModelForCausalLM` and `AutoTokenizer` from the folder that
`qwq convert --to hf` writes, one sequence at a time, no cache, no padding. Writes docs/results/agreement.json.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import torch
import transformers

import qwq
from qwq.checkpoint import convert
from qwq.evals import evaluate, tasks_named
from qwq.evals.files import Source
from qwq.evals.requests import WINDOW
from qwq.evals.runner import draw


class Reference:
    """`transformers` in float32, one sequence at a time."""

    def __init__(self, folder: Path):
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def log_p(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """(sum of log p of the continuation in nats, whether each of its tokens is the likeliest)."""
        logits = self.model(torch.tensor([[*context, *continuation]])).logits[0, len(context) - 1 : -1].double()
        labels = torch.tensor(continuation)
        nats = logits.log_softmax(-1).gather(1, labels[:, None]).sum()
        return float(nats), bool((logits.argmax(-1) == labels).all())

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def lambada(self, texts: list[str]) -> dict[str, float]:
        answers = []
        for text in texts:
            before = self.ids(text.rpartition(" ")[0])
            answers.append(self.log_p(before, self.ids(text)[len(before) :]))
        mean = sum(nats for nats, _ in answers) / len(answers)
        return {"accuracy": sum(greedy for _, greedy in answers) / len(answers), "perplexity": math.exp(-mean)}

    def wikitext(self, pages: list[str], first: int, window: int) -> dict[str, float]:
        """Windows share one token; the last one of a page reaches back as far as it can. `first` begins each page."""
        nats = 0.0
        for page in pages:
            ids = [first, *self.ids(page)]
            for start in range(1, len(ids), window):
                end = min(start + window, len(ids))
                nats += self.log_p(ids[max(0, end - 1 - window) : start], ids[start:end])[0]
        size, words = (sum(map(count, pages)) for count in (lambda p: len(p.encode()), lambda p: len(p.split())))
        return {"bits_per_byte": -nats / size / math.log(2), "word_perplexity": math.exp(-nats / words)}


def compare(model: str, data_dir: Path, limit: int, articles: int) -> dict:
    """{task: {metric: {"ours", "transformers"}, "n"}} on the same examples of each task."""
    lm = qwq.load(model)
    with tempfile.TemporaryDirectory() as folder:
        convert(model, "hf", Path(folder) / "hf")
        reference = Reference(Path(folder) / "hf")
    result: dict = {}
    for task, count in zip(tasks_named(["lambada", "wikitext"]), (limit, articles), strict=True):
        ours = evaluate(lm, [task], data_dir=data_dir, limit=count)
        if reason := ours["not_measured"].get(task.name):
            raise SystemExit(reason)
        examples = draw(task.load(Source(data_dir)).examples, count, seed=0)
        if task.name == "lambada":
            theirs = reference.lambada([e.prompt + e.answer for e in examples])
        else:
            first = lm.tokenizer.bos_token_id
            theirs = reference.wikitext([e.prompt for e in examples], 0 if first is None else first, WINDOW)
        metrics = ours["tasks"][task.name]["metrics"]
        result[task.name] = {"n": len(examples)} | {
            name: {"ours": metrics[name]["value"], "transformers": value} for name, value in theirs.items()
        }
    lm.close()
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--articles", type=int, default=8)
    given = parser.parse_args()
    found = compare(given.model, given.data_dir, given.limit, given.articles)
    text = json.dumps({"model": given.model, "tasks": found}, indent=1)
    (Path(__file__).parent / "results/agreement.json").write_text(text + "\n", encoding="utf-8")
    print(text)
