"""The stages that look at one document: normalisation, language, quality. Each returns None (kept) or why it goes.

The rules follow Gopher (Rae et al. 2021, table A1) and C4 (Raffel et al. 2020) for English, StarCoder (Li et al. 2023)
for code; the Chinese ones are our own, because a rule that counts words has nothing to count there.
"""

import re
import unicodedata
from collections import Counter

from qwq.data.documents import Document, hash_of
from qwq.tokenizer.base import without_surrogates

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_KANA_HANGUL = re.compile("[\u3040-\u30ff\uac00-\ud7af]")
_LATIN = re.compile("[A-Za-z]")
_LETTER = re.compile(r"[^\W\d_]")
# Control characters but tab and newline; invisible marks but the joiners that emoji and Indic scripts are written with.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufff0-\ufffb]"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]")
_NEWLINE = re.compile("\r\n?|\u2028|\u2029|\x85")
_ODD_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_INNER_SPACES = re.compile("(?<=[^ \t\n])[ \t]+")
_STOP_WORDS = {
    "the",
    "be",
    "to",
    "of",
    "and",
    "that",
    "have",
    "with",
    "is",
    "in",
    "it",
    "for",
    "on",
    "was",
    "as",
    "are",
}
_GENERATED = re.compile(
    r"(auto|machine)[- ]?generated|@generated|generated (by|from|with|automatically|file)|do not (edit|modify)",
    re.IGNORECASE,
)
_BOILERPLATE = re.compile(r"lorem ipsum|enable javascript|javascript (is|must be) (disabled|enabled)", re.IGNORECASE)


def normalise(text: str, *, code: bool = False) -> str:
    """NFC, one kind of newline, no control or invisible characters. In code only newlines and control characters go."""
    text = _NEWLINE.sub("\n", without_surrogates(text))
    if code:
        return _CONTROL.sub("", text).strip("\n") + "\n"
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    text = _INNER_SPACES.sub(" ", _ODD_SPACE.sub(" ", text))
    text = re.sub("[ \t\u3000]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def clean(document: Document) -> str | None:
    """Normalises the text (and the messages, whose joined contents are then the text) in place."""
    if document.messages is not None:
        document.messages = [{**m, "content": normalise(m["content"])} for m in document.messages]
        document.text = "\n".join(m["content"] for m in document.messages)
        if not all(m["content"] for m in document.messages):
            return "empty_message"
    else:
        document.text = normalise(document.text, code=document.language == "code")
    if document.text.count("\ufffd") > len(document.text) / 1000:
        return "invalid_utf8"
    document.hash = hash_of(document.text)
    return None if document.text.strip() else "empty"


def identify(document: Document) -> str | None:
    """Sets `language` from the script of the letters; what a reader already knows (code) stays."""
    if document.language not in ("code", "en", "zh"):
        document.language = language_of(document.text)
    return None


def language_of(text: str) -> str:
    """zh where Han characters carry the text, en where Latin letters and English function words do, else other."""
    sample = text if len(text) < 20_000 else text[:10_000] + text[len(text) // 2 : len(text) // 2 + 10_000]
    han, latin = len(HAN.findall(sample)), len(_LATIN.findall(sample))
    letters = max(1, len(_LETTER.findall(sample)))
    # One Han character says about as much as three to four Latin letters.
    if len(_KANA_HANGUL.findall(sample)) <= 0.05 * han and 3 * han >= latin and han >= 0.1 * letters:
        return "zh"
    if latin < 0.8 * letters:
        return "other"
    words = re.findall(r"[a-z']+", sample.lower())
    common = sum(word in _STOP_WORDS for word in words)
    return "en" if common >= 0.06 * len(words) or len(words) < 30 else "other"


def quality(document: Document) -> str | None:
    """Reason why the document teaches little, by the rules of its language; dialogues only have to be dialogues."""
    if document.kind == "dialogue":
        return "one_sided_dialogue" if len(document.messages or ()) < 2 else None
    if document.language == "code":
        return _code_quality(document.text)
    if _BOILERPLATE.search(document.text):
        return "boilerplate"
    lines = [line for line in document.text.split("\n") if line.strip()]
    long_lines = [line for line in lines if len(line) > 10]
    if len(long_lines) > 5 and len(set(long_lines)) < 0.7 * len(long_lines):
        return "repeated_lines"
    if document.language == "zh":
        return _chinese_quality(document.text, lines)
    return _word_quality(document.text, lines, english=document.language == "en")


def _word_quality(text: str, lines: list[str], *, english: bool) -> str | None:
    words = text.split()
    if len(words) < 20:
        return "too_short"
    if not 3 <= sum(map(len, words)) / len(words) <= 10:
        return "word_length"
    if text.count("#") + text.count("...") + text.count("…") > 0.1 * len(words):
        return "symbols"
    if sum(any(c.isalpha() for c in word) for word in words) < 0.8 * len(words):
        return "not_words"
    if sum(line.lstrip().startswith(("-", "•", "*", "·")) for line in lines) > 0.9 * len(lines):
        return "bullets"
    if sum(line.endswith(("...", "…")) for line in lines) > 0.3 * len(lines):
        return "cut_lines"
    if english and len(_STOP_WORDS & {word.lower() for word in words}) < 2:
        return "no_stop_words"
    return None


def _chinese_quality(text: str, lines: list[str]) -> str | None:
    characters = HAN.findall(text)
    if len(characters) < 30:
        return "too_short"
    visible = len(re.sub(r"\s", "", text))
    if sum(c.isdigit() for c in text) > 0.3 * visible:
        return "digits"
    if Counter(characters).most_common(1)[0][1] > 0.25 * len(characters):
        return "repeated_character"
    if len(characters) > 200 and not re.search("[。！？；，、]", text):
        return "no_punctuation"
    if sum(line.endswith(("...", "…")) for line in lines) > 0.3 * len(lines) and len(lines) > 3:
        return "cut_lines"
    return None


def _code_quality(text: str) -> str | None:
    lines = text.split("\n")
    if len(text) < 60:
        return "too_short"
    if _GENERATED.search("\n".join(lines[:10])):
        return "generated"
    if max(map(len, lines)) > 1000 or len(text) > 100 * len(lines):
        return "long_lines"
    if sum(c.isalpha() for c in text) < 0.25 * len(text):
        return "mostly_data"
    return None
