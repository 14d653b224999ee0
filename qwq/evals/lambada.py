"""LAMBADA (arXiv:1606.06031): the last word of a passage, which only its whole context tells."""

import math
from typing import Any

from qwq.errors import QwqError
from qwq.evals.files import Source, read_jsonl
from qwq.evals.task import Example, Split, Task, mean


class Lambada(Task):
    """Accuracy of greedy decoding and perplexity of the last word, on passages in OpenAI's form ({"text"} a line)."""

    name, kind = "lambada", "choice"
    metrics = {"accuracy": mean("correct"), "perplexity": lambda c: math.exp(-c["nats"].mean())}  # noqa: RUF012

    def load(self, source: Source) -> Split:
        names = ("lambada/lambada_test_en.jsonl", "lambada/test.jsonl", "lambada/first_half.jsonl")
        hub = ("EleutherAI/lambada_openai", "default", "test")
        rows, where = source.rows(names, lambda path: read_jsonl(path, "text"), hub)
        examples = []
        for number, row in enumerate(rows, 1):
            context, _, word = row["text"].rpartition(" ")
            if not context or not word:
                raise QwqError(f"{where}, passage {number}: has no last word")
            examples.append(Example(str(number), context, f" {word}"))
        return Split(examples, official=len(examples) == 5153)

    def grade(self, example: Example, answer: Any) -> dict[str, float]:
        return {"correct": answer[0].greedy, "nats": answer[0].nats}
