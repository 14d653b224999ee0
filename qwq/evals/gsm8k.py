"""GSM8K (arXiv:2110.14168): grade-school mathematics, solved in words, the answer after ####."""

import re
from typing import Any

from qwq.evals.files import Rows, Source, read_jsonl
from qwq.evals.task import Example, Split, Task, mean

_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
_CALCULATOR = re.compile(r"<<.*?>>")  # annotations for a tool that is not there


def final_number(text: str) -> str | None:
    """The number behind ####, or the last one of a text without; without $, commas and .00."""
    head, mark, tail = text.partition("####")
    numbers = _NUMBER.findall(tail)[:1] if mark else _NUMBER.findall(head)[-1:]
    number = "".join(numbers).replace("$", "").replace(",", "")
    return (number.rstrip("0").rstrip(".") if "." in number else number) or None


class Gsm8k(Task):
    """Exact match of the final number, after five worked examples."""

    name, fewshot, max_tokens, stop = "gsm8k", 5, 256, ("\n\n", "\nQuestion:")
    metrics = {"exact_match": mean("correct")}  # noqa: RUF012

    def load(self, source: Source) -> Split:
        def read(path):
            return read_jsonl(path, "question", "answer")

        rows, where = source.rows(("gsm8k/test.jsonl", "gsm8k/train.jsonl"), read, ("openai/gsm8k", "main", "test"))
        train = source.find("gsm8k/train.jsonl")
        shots = None if train is None or where == str(train) else _examples(read(train))
        return Split(_examples(rows), len(rows) == 1319, shots)

    def grade(self, example: Example, answer: Any) -> dict[str, float]:
        return {"correct": final_number(answer[0]) == final_number(example.answer)}


def _examples(rows: Rows) -> list[Example]:
    asked = [(f"Question: {row['question']}\nAnswer:", f" {_CALCULATOR.sub('', row['answer'])}") for row in rows]
    return [Example(str(i), question, answer) for i, (question, answer) in enumerate(asked, 1)]
