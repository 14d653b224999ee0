"""Whether a document teaches anything: rules by language and kind. Each returns None (kept) or the reason why it goes.

Gopher: Rae et al. 2021 (arXiv 2112.11446), table A1. C4: Raffel et al. 2020 (arXiv 1910.10683). FineWeb: Penedo et al.
2024 (arXiv 2406.17557), only for pages of the web. Code: StarCoder (arXiv 2305.06161) and linguist. Chinese and verse
have rules of our own: one that counts words or full stops has nothing to count there.
"""

import re
import statistics

import numpy as np

from qwq.data.characters import DIGIT, HAN, KANA, PUNCTUATION, Shape, most_frequent, repeated_share, shape, top_share
from qwq.data.documents import Document
from qwq.data.language import STOP_WORDS, UNSPACED

REPETITION_FROM = 100  # words, or 200 characters of Chinese: below it a share says nothing
TOP_GRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED_GRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
TERMINAL = ".!?\"'”’)…。！？」』）；;:："
_BOILERPLATE = re.compile(r"lorem ipsum|enable javascript|javascript (is|must be) (disabled|enabled)", re.IGNORECASE)
_GENERATED = re.compile(
    r"(auto|machine)[- ]?generated|@generated|generated (by|from|with|automatically|file)|do not (edit|modify)",
    re.IGNORECASE,
)
_GENERATED_NAME = re.compile(r"(_pb2(_grpc)?\.pyi?|\.pb\.(go|cc|h)|\.min\.(js|css)|\.g\.dart|_generated\.\w+)$")
_STOP_WORD = re.compile(rf"\b(?:{'|'.join(sorted(STOP_WORDS))})\b", re.IGNORECASE)


def quality(document: Document) -> str | None:
    """The first rule that a document breaks, by its name. Dialogues only have to be dialogues."""
    if document.kind == "dialogue":
        return "one_sided_dialogue" if len(document.messages or ()) < 2 else None
    if document.kind == "parallel":
        return _parallel(document)
    if document.language == "code":
        return _code(document)
    lower = document.text.lower()
    if ("ipsum" in lower or "javascript" in lower) and _BOILERPLATE.search(lower):
        return "boilerplate"
    text, web = shape(document.text), "extractor" in document.meta
    unspaced = document.language in UNSPACED
    if document.kind == "verse" or _is_verse(text, unspaced):
        return _verse(text, unspaced)
    return (
        _repeated_lines(document.text, web)
        or (_characters(text) if unspaced else _words(document, text))
        or (_web_lines(text, unspaced) if web else None)
        or (_repetition(text, unspaced))
    )


def _repeated_lines(text: str, web: bool) -> str | None:
    lines = [line for line in text.split("\n") if len(line) > 10]
    if len(lines) <= 5 and not web:
        return None
    distinct = set(lines)
    if len(lines) > 5 and len(distinct) < 0.7 * len(lines):
        return "repeated_lines"
    if web and sum(map(len, distinct)) < 0.9 * sum(map(len, lines)):  # FineWeb
        return "repeated_lines"
    return None


def _words(document: Document, text: Shape) -> str | None:
    """Gopher's rules."""
    words = len(text.words[0])
    if words < 20:
        return "too_short"
    if not 3 <= text.visible / words <= 10:
        return "word_length"
    source = document.text
    if source.count("#") + source.count("...") + source.count("…") > 0.1 * words:
        return "symbols"
    if text.share_of_words_with_letters < 0.8:
        return "not_words"
    if text.share_of_lines("-•*·", 0) > 0.9:
        return "bullets"
    if _cut(text) > 0.3:
        return "cut_lines"
    # Two different function words: nearly always among the first thousand characters.
    if document.language == "en" and not any(
        len({word.lower() for word in _STOP_WORD.findall(part)}) > 1 for part in (source[:1000], source)
    ):
        return "no_stop_words"
    return None


def _cut(text: Shape) -> float:
    """The share of the lines that end with an ellipsis."""
    return sum(line.endswith(("...", "…")) for line in text.lines) / max(1, len(text.lines))


def _characters(text: Shape) -> str | None:
    """Rules for Chinese and what else has no spaces."""
    codes = text.codes[(text.kinds >= HAN) & (text.kinds <= KANA)]
    letters = len(codes) or text.letters
    if letters < 30:
        return "too_short"
    if text.counts[DIGIT] > 0.3 * text.visible:
        return "digits"
    if len(codes) and most_frequent(codes)[1] > 0.25 * len(codes):
        return "repeated_character"
    if letters > 200 and not (text.counts[PUNCTUATION] and any(mark in text.text for mark in "。！？；，、")):
        return "no_punctuation"
    return "cut_lines" if len(text.lines) > 3 and _cut(text) > 0.3 else None


def _web_lines(text: Shape, unspaced: bool) -> str | None:
    """FineWeb's rules: a page whose lines are mostly short and do not end like sentences is a menu."""
    lines = text.lines
    if len(lines) < 5:
        return None
    if text.share_of_lines(TERMINAL, -1) <= 0.12:
        return "no_end_punctuation"
    short = sum(len(line) < (12 if unspaced else 30) for line in lines)
    return "short_lines" if short >= 0.67 * len(lines) else None


def _repetition(text: Shape, unspaced: bool) -> str | None:
    """Gopher's n-grams; in Chinese, of characters: a run of 10 says about as much as one of 5 words."""
    if unspaced:
        hashes = text.codes[text.kinds == HAN].astype(np.uint64)
        repeated = len(hashes) >= 2 * REPETITION_FROM and repeated_share(hashes, np.ones(len(hashes)), 10) > 0.3
        return "repeated_ngrams" if repeated else None
    starts, ends = text.words
    if len(starts) < REPETITION_FROM:
        return None
    lengths = ends - starts
    if any(top_share(text.word_hashes, lengths, n) > limit for n, limit in TOP_GRAMS.items()):
        return "top_ngram"
    # What lies in a repeated run of six lies in one of five: the shares only fall, and most texts end at the first.
    for n, limit in REPEATED_GRAMS.items():
        share = repeated_share(text.word_hashes, lengths, n)
        if share > limit:
            return "repeated_ngrams"
        if share <= 0.1:
            return None
    return None


def _is_verse(text: Shape, unspaced: bool) -> bool:
    """Many lines, all short, none wrapped, with the rhythm of verse: even lengths, or capitals at their starts."""
    lines = text.lines
    if len(lines) < 4 or text.counts[DIGIT]:
        return False
    lengths = sorted(map(len, lines))
    if not 5 <= statistics.median(lengths) <= (24 if unspaced else 60):
        return False
    if unspaced:
        return text.share_of_lines("，。！？；、", -1) > 0.9 and lengths[-1] <= 40
    upper = sum(line[0].isupper() for line in lines)
    return upper > 0.9 * len(lines) and lengths[-1] <= 75 and text.share_of_lines(",;:—", -1) >= 0.2


def _verse(text: Shape, unspaced: bool) -> str | None:
    """Refrains are no fault and lines are short; but a poem has four of them, of words, and not all the same."""
    if text.letters < (16 if unspaced else 60) or len(text.lines) < 2:
        return "too_short"
    if text.letters < 0.7 * text.visible:
        return "not_words"
    return "repeated_lines" if len(set(text.lines)) < 0.4 * len(text.lines) else None


def _parallel(document: Document) -> str | None:
    """Two lines, one a language, that can be translations of each other."""
    languages = document.meta.get("languages", ("", ""))
    sides = document.text.split("\n")
    if len(sides) != 2 or not all(sides):
        return "one_sided_pair"
    if sides[0] == sides[1]:
        return "untranslated"
    first, second = shape(sides[0]), Shape(sides[1])
    if first.letters < 2 or second.letters < 2:
        return "too_short"
    for language, side in zip(languages, (first, second), strict=True):
        if (language == "zh") != bool(side.counts[HAN] > 0.1 * side.letters) and "ja" not in languages:
            return "wrong_language"
    # One Han character says about as much as three to four Latin letters.
    weights = [side.letters + 2.5 * side.counts[HAN] for side in (first, second)]
    return "length_ratio" if max(weights) > 40 and max(weights) > 3 * min(weights) else None


def _code(document: Document) -> str | None:
    text = document.text
    lines = text.split("\n")
    if len(text) < 60:
        return "too_short"
    if _GENERATED_NAME.search(document.meta.get("file", "")) or _GENERATED.search("\n".join(lines[:10])):
        return "generated"
    if max(map(len, lines)) > 1000 or len(text) > 100 * len(lines):
        return "long_lines"
    if shape(text).letters < 0.25 * len(text):
        return "mostly_data"
    return None
