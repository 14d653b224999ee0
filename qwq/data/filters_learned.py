"""Classifiers that are trained here: what is clean prose, what is harmful. Logistic regression on hashed bytes.

A text is the runs of 3, 4, 6 and 9 bytes in it (one, two, three Chinese characters; parts of English words, and two
short ones), hashed into 2**18 slots. Training is scikit-learn's; to judge a text takes numpy alone, some 25 MB/s.
"""

import functools
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from qwq.checkpoint.builtin import cache_dir
from qwq.data.clean import normalise
from qwq.data.demo import Brown, StandardLibrary, Wikipedia, WritingBench
from qwq.data.documents import Document
from qwq.errors import QwqError

BITS = 18
GRAMS = (3, 4, 6, 9)
WINDOW = 400  # bytes that are judged together
SAMPLE = 1 << 15  # bytes of a document that are judged
QUALITY = "quality-1.npz"  # in the cache; the number changes with how it is trained
_FACTOR = np.uint32(0x9E3779B1)


def slots(text: str) -> list[np.ndarray]:
    """For each length of run, the slot of the run at each byte, uint32 [bytes - n + 1]."""
    data = " ".join(text.lower().split()).encode("utf-8", "replace")
    codes = np.frombuffer(data, np.uint8).astype(np.uint32) + np.uint32(1)
    mixed, found = np.zeros(len(codes) + 1, np.uint32), []
    for n in range(1, max(GRAMS) + 1):
        mixed = (mixed[: max(0, len(codes) - n + 1)] + codes[n - 1 :]) * _FACTOR
        mixed ^= mixed >> np.uint32(15)
        if n in GRAMS:
            found.append((mixed * np.uint32(0x85EBCA6B + 2 * n)) >> np.uint32(32 - BITS))
    return found


class HashedClassifier:
    """weights float32 [2**BITS], bias. A window's evidence is the sum of its weights over the root of their number."""

    def __init__(self, weights: np.ndarray, bias: float) -> None:
        self.weights, self.bias = weights, bias

    @classmethod
    def train(cls, texts: list[str], labels: list[int]) -> "HashedClassifier":
        """labels: 1 for what is to be found. The same texts give the same weights."""
        try:
            from scipy.sparse import csr_matrix
            from sklearn.linear_model import SGDClassifier
        except ImportError:
            raise QwqError("training a classifier needs scikit-learn: pip install 'qwq[data]'") from None
        rows = [np.concatenate(slots(text)) for text in texts]
        ends = np.cumsum([0, *map(len, rows)])
        values = np.concatenate([np.full(len(row), 1 / np.sqrt(max(1, len(row))), np.float32) for row in rows])
        matrix = csr_matrix((values, np.concatenate(rows).astype(np.int32), ends), (len(rows), 1 << BITS))
        matrix.sum_duplicates()
        model = SGDClassifier(loss="log_loss", alpha=2e-6, max_iter=12, tol=None, random_state=0)
        model.fit(matrix, labels)
        return cls(model.coef_[0].astype(np.float32), float(model.intercept_[0]))

    def scores(self, text: str) -> np.ndarray:
        """The probability for each window of a text, in order; for one of 32 kB, of its start, middle and end."""
        if len(text) > SAMPLE:
            third, middle = SAMPLE // 3, len(text) // 2
            text = f"{text[:third]} {text[middle : middle + third]} {text[-third:]}"
        found = slots(text)
        size = len(found[0]) + GRAMS[0] - 1
        borders = np.arange(0, max(1, size - WINDOW // 2), WINDOW)  # what is left over joins the last window
        total, number = np.zeros(len(borders)), np.zeros(len(borders))
        for runs in found:
            inside = borders[borders < len(runs)]
            if len(inside):
                total[: len(inside)] += np.add.reduceat(self.weights[runs], inside)
                number[: len(inside)] += np.diff([*inside, len(runs)])
        return 1 / (1 + np.exp(-(total / np.sqrt(np.maximum(1, number)) + self.bias)))

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part.npz")
        np.savez_compressed(partial, weights=self.weights.astype(np.float16), bias=self.bias)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "HashedClassifier":
        """What `save` wrote."""
        with np.load(path) as stored:
            return cls(stored["weights"].astype(np.float32), float(stored["bias"]))


@functools.cache
def load(path: str) -> HashedClassifier:
    """A saved classifier, once a process."""
    return HashedClassifier.load(Path(path))


class LearnedQuality:
    """Drops prose that looks less like clean prose than the threshold; `meta["quality"]` of what stays, and a tally."""

    def __init__(self, model: str, threshold: float) -> None:
        self.model, self.threshold = model, threshold
        self.tally: Counter[str] = Counter()

    def __call__(self, document: Document) -> str | None:
        if document.kind in ("dialogue", "parallel", "verse") or document.language not in ("en", "zh"):
            return None
        score = float(load(self.model).scores(document.text).mean())
        document.meta["quality"] = round(score, 3)
        self.tally[f"{int(score * 10) / 10:.1f}"] += 1
        return "low_quality" if score < self.threshold else None


def quality_model() -> Path:
    """The classifier of clean prose, trained when first asked for, within a minute, from the packages of the demo."""
    path = cache_dir() / QUALITY
    if not path.is_file():
        good: list[str] = []
        bad: list[str] = []
        for text in clean_prose():
            good += windows(text)
            bad += windows(noise(text, random.Random(len(bad))))
        bad += [window for text in markup() for window in windows(text)]
        HashedClassifier.train(good + bad, [1] * len(good) + [0] * len(bad)).save(path)
    return path


def windows(text: str, most: int = 16) -> list[str]:
    """Some stretches of a text that are as long as what is judged together."""
    size = WINDOW // 3 if len(text.encode("utf-8", "replace")) > 2 * len(text) else WINDOW
    found = [text[i : i + size] for i in range(0, len(text) - size // 2, size)]
    return found[:: max(1, len(found) // most)][:most]


def clean_prose() -> Iterator[str]:
    """What people wrote and edited: the encyclopedia, the Brown Corpus, reference material in two languages."""
    for source in (Wikipedia(), Brown(), WritingBench()):
        for document in source.documents(lambda file, reason: None):
            if document.kind != "dialogue" and len(document.text) > 500:
                yield normalise(document.text)


def markup() -> Iterator[str]:
    """Real noise: the same encyclopedia and corpus before their markup and tags are taken out, and code."""
    yield from (text for _, text in Wikipedia().pages())
    yield from (text for _, text in Brown().files())
    yield from (d.text for d in StandardLibrary().documents(lambda file, reason: None) if d.kind == "code")


def noise(text: str, chance: random.Random) -> str:
    """What goes wrong with text, one way for each call: scanning, menus, spam, tables, words in no order."""
    words = re.findall("[\u4e00-\u9fff]{1,2}|[^\\s\u4e00-\u9fff]+\\s?", text)
    way = chance.randrange(5)
    if way == 0:  # a bad scan: every eighth letter is another, spaces are lost and found
        odd = "lI1|rn0OcecTf~'’•的口囗日曰"
        changed = (chance.choice(odd) if chance.random() < 0.12 and c.isalpha() else c for c in text)
        return "".join(c if chance.random() < 0.96 else chance.choice(("", c + " ")) for c in changed)
    if way == 1:  # a menu
        picked = (chance.choice(words).strip(".,;:，。、 \n").title() for _ in words[::2])
        return "\n".join(chance.choice(("{}", "{} |", "» {}", "[{}]")).format(word) for word in picked if word)
    if way == 2:  # keywords
        few = chance.sample(words, min(len(words), 12))
        return "".join(chance.choice(few) + chance.choice(("", ", ", " ", "！")) for _ in words)
    if way == 3:  # a table
        cells = (chance.choice((str(chance.randrange(10**6)), f"{chance.random():.4f}", "-", "N/A")) for _ in words)
        return "".join(cell + chance.choice("\t |\n") for cell in cells)
    return "".join(chance.sample(words, len(words)))
