"""More text out of text: words replaced, inserted or left out (EDA, arXiv 1901.11196), and back-translation.

Which words, and what for, is drawn from the seed and the text's hash: the same text gives the same result in any order,
on any worker. Chinese is cut into words by jieba, so nothing is cut inside one.
"""

import functools
import itertools
import json
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qwq.checkpoint.files import new_folder
from qwq.data.documents import Document, DocumentWriter, hash_of, read_documents
from qwq.errors import QwqError, UsageError

OPERATIONS = ("replace", "insert", "delete")
Lexicon = Callable[[str], list[str]]  # a word in lower case -> words that may stand in its place
WORDNET = Path("/usr/share/wordnet")  # where Debian's wordnet-base puts it
_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_PIECE = re.compile(f"[{_HAN}]+|[^\\W\\d_{_HAN}]+(?:['’-][^\\W\\d_{_HAN}]+)*|\\d+|[\\W_]+")
_IS_HAN = re.compile(f"[{_HAN}]")
_FUNCTION_WORDS = set(
    "the be to of and a an in that have has had i it for not on with he she as you do does did at this but his her by "
    "from they we say or will my one all would there their what so up out if about who which when can no yes is are "
    "was were than then its our your them him us me could should may might must these those been being am".split()
)


@functools.cache
def _jieba() -> Any:
    try:
        import jieba
        import jieba.posseg
    except ImportError:
        raise QwqError("Chinese words are found by jieba: pip install 'qwq[data]'") from None
    jieba.setLogLevel(60)
    return jieba


def split_words(text: str) -> tuple[list[str], list[int]]:
    """(pieces that joined are the text, the places of the words among them); numbers and marks are pieces too."""
    pieces: list[str] = []
    places: list[int] = []
    for piece in _PIECE.findall(text):
        for part in _jieba().cut(piece) if _IS_HAN.match(piece) else (piece,):
            if part[0].isalpha():
                places.append(len(pieces))
            pieces.append(part)
    return pieces, places


class WordNet:
    """Synonyms of WordNet 3.0, in the commonest sense of a word; none for inflected forms and function words."""

    def __init__(self, folder: Path = WORDNET) -> None:
        self.folder = folder
        self.senses: dict[str, tuple[int, str, int]] = {}  # lemma -> (tagged senses, part of speech, place in its file)
        try:
            for part in ("noun", "verb", "adj", "adv"):
                for line in (folder / f"index.{part}").read_text(encoding="ascii").splitlines():
                    lemma, _, _, pointers, *rest = line.split(" ")
                    if not lemma:  # the licence in front
                        continue
                    tagged, place = int(rest[int(pointers) + 1]), int(rest[int(pointers) + 2])
                    if tagged > self.senses.get(lemma, (-1,))[0]:
                        self.senses[lemma] = tagged, part, place
        except OSError:
            raise QwqError(f"{folder} holds no WordNet (index.noun ...): apt install wordnet-base") from None

    def __call__(self, word: str) -> list[str]:
        if word not in self.senses or word in _FUNCTION_WORDS:
            return []
        _, part, place = self.senses[word]
        with open(self.folder / f"data.{part}", encoding="ascii") as file:
            file.seek(place)
            fields = file.readline().split(" ")
        count = int(fields[3], 16)
        names = (name.partition("(")[0].replace("_", " ") for name in fields[4 : 4 + 2 * count : 2])
        return [name for name in names if name.lower() != word]


class SameCategory:
    """Words of the texts that have a word's category: jieba's tag and the length for Chinese; else the last letters.

    Texts in place of a dictionary: what comes in is a word of the same kind, and not one of the same meaning.
    """

    def __init__(self, texts: Iterable[str], *, most: int = 1000) -> None:
        counts: dict[str, int] = {}
        for text in texts:
            pieces, places = split_words(text)
            for place in places:
                word = pieces[place].lower()
                counts[word] = counts.get(word, 0) + 1
        self.groups: dict[str, list[str]] = {}
        for word in sorted(counts, key=lambda w: (-counts[w], w)):
            group = self.groups.setdefault(self._category(word), [])
            if len(group) < most and word not in _FUNCTION_WORDS:
                group.append(word)

    @staticmethod
    def _category(word: str) -> str:
        if _IS_HAN.match(word):
            _jieba().initialize()
            return f"{_jieba().posseg.dt.word_tag_tab.get(word, 'x')}{len(word)}"
        return word[-2:] if len(word) > 4 else str(len(word))

    def __call__(self, word: str) -> list[str]:
        if word in _FUNCTION_WORDS:
            return []
        return [other for other in self.groups.get(self._category(word), ()) if other != word]


def both(*lexicons: Lexicon) -> Lexicon:
    """The first of them that knows the word."""
    return lambda word: next((found for lexicon in lexicons if (found := lexicon(word))), [])


@dataclass(frozen=True)
class WordNoise:
    """`rate` of a text's words replaced, as many inserted and as many left out, as far as `operations` say so.

    Replacements, and what is inserted, come from `lexicon`; words that it does not know stay, so fewer may be replaced.
    """

    lexicon: Lexicon
    rate: float = 0.1
    seed: int = 0
    operations: tuple[str, ...] = OPERATIONS

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise UsageError(f"the rate of augmentation must be 0 to 1, not {self.rate}")
        for name in self.operations:
            if name not in OPERATIONS:
                raise UsageError(f"no operation {name!r}; known are {', '.join(OPERATIONS)}")

    def __call__(self, text: str) -> str:
        """Another form of the text."""
        draw = random.Random(f"{self.seed} {hash_of(text)}")
        pieces, places = split_words(text)
        many = round(self.rate * len(places))
        known = {place: self.lexicon(pieces[place].lower()) for place in places} if many else {}
        able = [place for place in places if known.get(place)]
        gone = set(draw.sample(places, min(many, len(places) - 1))) if "delete" in self.operations and many else set()
        new: dict[int, str] = {}
        if "insert" in self.operations and able:
            new = {place: draw.choice(known[draw.choice(able)]) for place in draw.sample(places, many)}
        if "replace" in self.operations:
            left = [place for place in able if place not in gone]
            for place in draw.sample(left, min(many, len(left))):
                pieces[place] = _as(pieces[place], draw.choice(known[place]))
        out: list[str] = []
        for place, piece in enumerate(pieces):
            if place in gone:
                if out and out[-1].endswith(" "):
                    out[-1] = out[-1][:-1]
            else:
                out.append(piece)
            if place in new:
                out.append(new[place] if _IS_HAN.match(new[place]) or not out else f" {new[place]}")
        return "".join(out)


def _as(old: str, new: str) -> str:
    """A word in the case of the one it replaces."""
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new


Reword = Callable[[list[str]], list[str | None]]
BATCH = 200  # documents whose paragraphs are given to a translator at once


def by_words(noise: WordNoise) -> Reword:
    """`WordNoise` as a function of many texts; None where nothing changed."""
    return lambda texts: [None if (other := noise(text)) == text else other for text in texts]


def reworded(documents: Iterable[Document], reword: Reword, how: str) -> Iterator[Document]:
    """A copy of each document in other words, paragraph by paragraph; of code and dialogue there is none.

    A paragraph for which `reword` has nothing stays as it was; with less than half of its text reworded there is no
    copy. `meta` of a copy says how, and of which document.
    """
    prose = (document for document in documents if document.language != "code" and document.messages is None)
    while batch := list(itertools.islice(prose, BATCH)):
        given = [line for document in batch for line in document.text.split("\n") if line.strip()]
        answers = iter(reword(given))
        for document in batch:
            lines = document.text.split("\n")
            new = [next(answers) if line.strip() else None for line in lines]
            changed = sum(len(line) for line, other in zip(lines, new, strict=True) if other is not None)
            if changed and 2 * changed >= len(document.text):
                text = "\n".join(line if other is None else other for line, other in zip(lines, new, strict=True))
                meta = document.meta | {"augmented": how, "of": document.hash}
                yield replace(document, text=text, meta=meta, hash=hash_of(text))


def augment(docs: Path | str, out: Path | str, rewords: dict[str, tuple[str, Reword]]) -> dict:
    """The corpus `docs` and the reworded copies of its documents, as a corpus in the new folder `out`; its report.

    rewords: for each way a name, the language of the documents it is for, and the function. Held-out documents are
    taken over as they are, without copies. The copies stand behind all originals, way by way.
    """
    docs, out = Path(docs), Path(out)
    if out.exists():
        raise UsageError(f"{out} exists; give another --out")
    with new_folder(out) as folder, DocumentWriter(folder / "documents") as writer:
        for document in read_documents(docs):
            writer.write(document)
        counts = {"originals": writer.count}
        for how, (language, reword) in rewords.items():
            before = writer.count
            for copy in reworded((d for d in read_documents(docs) if d.language == language), reword, how):
                writer.write(copy)
            counts[how] = writer.count - before
        if (docs / "heldout").is_dir():
            shutil.copytree(docs / "heldout", folder / "heldout")
        report = {"documents": writer.count, "bytes": writer.bytes, "augmentation": counts}
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report
