"""Normalisation: one form of Unicode, one kind of newline, no characters that nobody sees."""

import re
import unicodedata

from qwq.data.documents import Document, hash_of
from qwq.tokenizer.base import without_surrogates

# Control characters but tab and newline; invisible marks but the joiners that emoji and Indic scripts are written with.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\ufeff\ufff0-\ufffb]"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]")
_NEWLINE = re.compile("\r\n?|\u2028|\u2029|\x85")
_ODD_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
# Everything but plain Latin and Chinese: without such a character none of the above, and the text is NFC.
_UNUSUAL = re.compile("[^\t\n -~\u00a1-\u00ac\u00ae-\u02ff\u2010-\u2027\u3000-\u303f\u4e00-\u9fff\uff01-\uff5e]")
_INNER_SPACES = re.compile("(?<=[^ \t\n])(?:[ \t]{2,}|\t)")
_LINE_END = re.compile("[ \t\u3000]+\n")
# What C4 and FineWeb cut out of web pages: lines about the page rather than its subject.
_PAGE = re.compile(
    r"\b(javascript|cookies?|terms of (use|service)|privacy policy|all rights reserved)\b"
    "|版权所有|ICP备|点击查看|返回首页|上一篇|下一篇|扫一扫|加微信|责任编辑",
    re.IGNORECASE,
)


def normalise(text: str, *, code: bool = False) -> str:
    """NFC, one kind of newline, no control or invisible characters. In code only newlines and control characters go."""
    if _UNUSUAL.search(text):
        text = _NEWLINE.sub("\n", without_surrogates(text))
        text = (_CONTROL if code else _INVISIBLE).sub("", text)
        if not code:
            text = _ODD_SPACE.sub(" ", unicodedata.normalize("NFC", text))
    if code:
        return text.strip("\n") + "\n"
    if "  " in text or "\t" in text:
        text = _INNER_SPACES.sub(" ", text)
    if any(end in text for end in (" \n", "\t\n", "\u3000\n")):
        text = _LINE_END.sub("\n", text)
    return (re.sub(r"\n{3,}", "\n\n", text) if "\n\n\n" in text else text).strip()


def clean(document: Document) -> str | None:
    """Normalises the text (and the messages, whose joined contents are then the text) in place."""
    if document.messages is not None:
        document.messages = [{**m, "content": normalise(m["content"])} for m in document.messages]
        document.text = "\n".join(m["content"] for m in document.messages)
        if not all(m["content"] for m in document.messages):
            return "empty_message"
    else:
        document.text = normalise(document.text, code=document.language == "code")
        if document.kind == "web" and "extractor" in document.meta:
            lines = document.text.split("\n")
            document.text = "\n".join(line for line in lines if len(line) > 200 or not _PAGE.search(line)).strip()
    if document.text.count("\ufffd") > len(document.text) / 1000:
        return "invalid_utf8"
    document.hash = hash_of(document.text)
    return None if document.text.strip() else "empty"
