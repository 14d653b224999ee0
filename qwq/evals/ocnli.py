"""OCNLI (arXiv:2010.05444): Chinese natural language inference by prompt."""

from qwq.evals.files import Source, index_of, read_jsonl
from qwq.evals.task import ChoiceTask, Example, Split

_FIELDS, _LABELS = ("sentence1", "sentence2", "label"), ("entailment", "neutral", "contradiction")
_CHOICES = ("对", "不一定", "错")


class Ocnli(ChoiceTask):
    """Accuracy; items on which the annotators did not agree (label "-") are left out, as by the official scorer."""

    name = "ocnli"

    def load(self, source: Source) -> Split:
        names = ("ocnli/dev.json", "ocnli/train.10k.json")
        rows, where = source.rows(names, lambda path: read_jsonl(path, *_FIELDS), ("clue", "ocnli", "validation"))
        examples = []
        for number, row in enumerate(rows, 1):
            if row["label"] not in ("-", -1):
                target = index_of(row["label"], _LABELS, f"{where}, line {number}")
                prompt = f"{row['sentence1']}\n问题：{row['sentence2']}对、错还是不一定？\n答案："
                examples.append(Example(str(number), prompt, _CHOICES[target], _CHOICES, target))
        return Split(examples, official=len(rows) == 2950 and "train" not in where)
