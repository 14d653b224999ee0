"""Questions on a text: SQuAD 1.1 (arXiv:1606.05250), XQuAD (arXiv:1910.11856), CMRC 2018 (arXiv:1810.07366)."""

import re
import string
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from qwq.errors import QwqError
from qwq.evals.files import Hub, Rows, Source, read_json, some
from qwq.evals.task import Example, Split, Task, mean

_HAN = re.compile("[\u4e00-\u9fa5]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CHINESE_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》…·、「」（）－～『』‘【】—")
_WORDS = {
    "en": ("Question: ", "Answer:"), "zh": ("问题：", "答案："),
    "es": ("Pregunta: ", "Respuesta:"), "de": ("Frage: ", "Antwort:"),
}  # fmt: skip


def squad_scores(prediction: str, answer: str) -> tuple[bool, float]:
    """(exact match, F1 of the bags of words), as SQuAD 1.1's scorer has them."""
    ours, theirs = _squad_words(prediction), _squad_words(answer)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return ours == theirs, 2 * same / (len(ours) + len(theirs)) if same else 0.0


def _squad_words(text: str) -> list[str]:
    """Lower case, no punctuation, no articles. Chinese characters are words each, as in MLQA's scorer: Chinese has no
    spaces, and the F1 of whole phrases would be exact match."""
    text = text.lower().translate(_PUNCTUATION)
    if _HAN.search(text):
        text = _HAN.sub(r" \g<0> ", text.translate(_CHINESE_PUNCTUATION))
    return _ARTICLES.sub(" ", text).split()


def cmrc_scores(prediction: str, answer: str) -> tuple[bool, float]:
    """(exact match without punctuation, F1 by the longest common run of segments), as CMRC 2018's scorer has them.

    Segments are Chinese characters, and words and marks of other scripts.
    """
    bare = [text.lower().strip().translate(_CHINESE_PUNCTUATION) for text in (prediction, answer)]
    ours, theirs = (re.findall(r"[\u4e00-\u9fa5]|[^\W\u4e00-\u9fa5]+|[^\w\s]", text) for text in bare)
    run = SequenceMatcher(None, ours, theirs, autojunk=False).find_longest_match().size
    return bare[0] == bare[1], 2 * run / (len(ours) + len(theirs)) if run else 0.0


class Squad(Task):
    """Greedy answers; the best match among a question's answers counts. Questions of a paragraph share its prefill."""

    fewshot, max_tokens = 3, 32
    metrics = {"f1": mean("f1"), "exact_match": mean("exact_match")}  # noqa: RUF012

    def __init__(
        self, name: str, files: tuple[str, ...], language: str, official: int, hub: Hub, score: Callable = squad_scores
    ):
        self.name, self.files, self.language = name, files, language
        self.official, self.hub, self.score = official, hub, score

    def load(self, source: Source) -> Split:
        rows, where = source.rows(self.files, _flat, self.hub)
        question, answer = _WORDS[self.language]
        space = "" if self.language == "zh" else " "
        examples = []
        for row in rows:
            texts = row["answers"]["text"]
            prompt = f"{row['context'].strip()}\n{question}{row['question'].strip()}\n{answer}"
            examples.append(Example(str(row["id"]), prompt, f"{space}{texts[0]}", (), texts, row["context"]))
        return Split(examples, len(examples) == self.official and "trial" not in where)

    def grade(self, example: Example, answer: Any) -> dict[str, float]:
        marks = [self.score(answer[0].strip(), reference) for reference in example.target]
        return {"exact_match": max(exact for exact, _ in marks), "f1": max(f1 for _, f1 in marks)}


def _flat(path: Path) -> Rows:
    """The questions of a SQuAD-format file as rows with the hub's columns; SQuAD 2's without answer are left out."""
    try:
        questions = [(p["context"], qa) for a in read_json(path)["data"] for p in a["paragraphs"] for qa in p["qas"]]
        rows = [
            {
                "id": qa["id"],
                "context": text,
                "question": qa["question"],
                "answers": {"text": [a["text"] for a in qa["answers"]]},
            }
            for text, qa in questions
            if qa["answers"]
        ]
    except (LookupError, TypeError) as error:
        raise QwqError(f"{path}: not in SQuAD's format (data, paragraphs, qas, answers): no {error}") from None
    return some(rows, path)


def squad() -> Squad:
    files = ("squad/dev-v1.1.json", "squad/dev.json")
    return Squad("squad", files, "en", 10570, ("rajpurkar/squad", None, "validation"))


def cmrc2018() -> Squad:
    files = ("cmrc2018/dev.json", "cmrc2018/cmrc2018_dev.json", "cmrc2018/trial.json")
    return Squad("cmrc2018", files, "zh", 3219, ("hfl/cmrc2018", None, "validation"), cmrc_scores)


def xquad(language: str) -> Squad:
    files = (f"xquad/xquad.{language}.json", f"xquad/{language}.json")
    return Squad(f"xquad-{language}", files, language, 1190, ("google/xquad", f"xquad.{language}", "validation"))
