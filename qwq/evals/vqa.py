"""Questions about images: VQA v2 (arXiv:1612.00837) with its official accuracy, and easy-VQA.

A model that cannot see gets the question alone; the figure says so, and tells how far guessing goes.
"""

import json
import re
import zipfile
from typing import Any

from qwq.data.fetch import Package, fetch
from qwq.errors import QwqError
from qwq.evals.files import Source, index_of, read_json, read_text
from qwq.evals.task import ChoiceTask, Example, Split, Task, mean

QUESTION_ONLY = "question only: the model saw no image"
EASY_VQA = Package("pypi", "easy-vqa", "1.0", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f")
_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_DIGITS = {"none": "0", **{word: str(i) for i, word in enumerate(_NUMBERS)}}
# What people type without its apostrophe: "dont", "theyre", "whats".
_STEMS = {
    "n't": "are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could I might must should they we what who would you", "'re": "there they what why you",
    "'s": "he how that there what when where who why", "'ll": "how it they what who why you",
    "'d": "how it there they where who you",
}  # fmt: skip
_CONTRACTIONS = {f"{stem}{end}".replace("'", ""): stem + end for end, stems in _STEMS.items() for stem in stems.split()}


def strip_marks(text: str) -> str:
    """Punctuation as VQA's scorer takes it away: at the side of a space it goes, else it is a space."""
    out, joined = text, re.search(r"\d,\d", text) is not None
    for mark in ";/[]\"'()=+\\_><@`,?:":
        out = out.replace(mark, "" if joined or f"{mark} " in text or f" {mark}" in text else " ")
    return re.sub(r"\.(?!\d)", "", out)


def vqa_accuracy(prediction: str, answers: list[str]) -> float:
    """min(people who said so / 3, 1), averaged over leaving each of the people out.

    The prediction loses punctuation and articles, number words become digits; people's answers come so already.
    """
    words = [_DIGITS.get(word, word) for word in strip_marks(" ".join(prediction.split())).lower().split()]
    said = " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))
    same = (answers if len(set(answers)) == 1 else [strip_marks(answer) for answer in answers]).count(said)
    return (same * min(1.0, (same - 1) / 3) + (len(answers) - same) * min(1.0, same / 3)) / len(answers)


class Vqa(Task):
    """Official accuracy of short greedy answers to the questions alone, so a proxy."""

    name, fewshot, max_tokens, label, note = "vqa", 4, 12, "proxy", QUESTION_ONLY
    metrics = {"accuracy": mean("accuracy")}  # noqa: RUF012

    def load(self, source: Source) -> Split:
        questions = source.need("vqa/v2_OpenEnded_mscoco_val2014_questions.json", "vqa/questions.json")
        annotations = source.need("vqa/v2_mscoco_val2014_annotations.json", "vqa/annotations.json")
        examples = []
        try:
            people = {
                a["question_id"]: [p["answer"] for p in a["answers"]] for a in read_json(annotations)["annotations"]
            }
            for q in read_json(questions)["questions"]:
                answers = people[q["question_id"]]
                prompt, answer = f"Question: {q['question']}\nShort answer:", f" {max(answers, key=answers.count)}"
                examples.append(Example(str(q["question_id"]), prompt, answer, (), answers, str(q["image_id"])))
        except (LookupError, TypeError) as error:
            raise QwqError(f"{questions} and {annotations.name} are not in VQA's format: no {error}") from None
        return Split(examples)

    def grade(self, example: Example, answer: Any) -> dict[str, float]:
        return {"accuracy": vqa_accuracy(answer[0], example.target)}


class EasyVqa(ChoiceTask):
    """One of 13 answers about coloured shapes (the PyPI package easy-vqa, MIT), from the question alone."""

    name, fewshot, label, note = "easy-vqa", 4, "proxy", QUESTION_ONLY

    def load(self, source: Source) -> Split:
        folder = source.find("easy-vqa")

        def read(name: str) -> str:
            if folder is not None:
                return read_text(folder / name)
            return zipfile.ZipFile(fetch(EASY_VQA)).read(f"easy_vqa/data/{name}").decode()

        answers = read("answers.txt").split()
        choices = tuple(f" {answer}" for answer in answers)

        def examples(name: str) -> list[Example]:
            made = []
            for number, (question, answer, image) in enumerate(json.loads(read(name)), 1):
                target = index_of(answer, answers, f"easy-vqa, {name}, question {number}")
                prompt = f"Question: {question}\nAnswer:"
                made.append(Example(str(number), prompt, choices[target], choices, target, str(image)))
            return made

        try:
            return Split(examples("test/questions.json"), shots=examples("train/questions.json"))
        except (ValueError, TypeError) as error:
            raise QwqError(f"easy-vqa: its questions are not [question, answer, image], or cut off: {error}") from None
