"""Personal data becomes typed placeholders: <EMAIL> <PHONE> <ID> <CARD> <IP>. Numbers with a check digit must have it.

A rule that is wrong costs a number in a text; a rule that is missing leaks a person. Code is full of digits and poor in
people, so there only e-mail and IP addresses go.
"""

import ipaddress
import re
from collections import Counter
from datetime import date

from qwq.data.characters import DIGIT, shape
from qwq.data.documents import Document

PLACEHOLDERS = ("EMAIL", "PHONE", "ID", "CARD", "IP")
_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b", re.ASCII)
_EXAMPLE = re.compile(r"@(?:[\w-]+\.)*(?:example\.(?:com|org|net)|\w+\.(?:example|invalid|test|local))$", re.IGNORECASE)
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){1,6}(?![\w:])", re.ASCII)
_VERSION = re.compile(r"(?:version|ver\.?|\bv|release|版本|§|section|chapter)[\s\"'=:_]*$", re.IGNORECASE)
# Every run of digits that a person's number could be, with the separators people put in; what it is, `_kind` says.
_NUMBER = re.compile(r"(?<![\w.,$€£¥-])(?:\+|00)?\(?\d(?:[ \-.()]{0,2}\d){6,37}[Xx]?(?![\w%-]|[.,]\d)", re.ASCII)
# What the two above need at the least, found several times faster than what they find.
_DOTTED, _LONG = re.compile(r"\d\.\d+\.\d", re.ASCII), re.compile(r"\d[\d \-.()]{5}[\d \-.()]*\d", re.ASCII)
_NORTH_AMERICAN = re.compile(r"(?:\+?1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}")
_INTERNATIONAL = re.compile(r"(?:\+|00)[1-9]\d{0,2}(?:[ \-.()]{0,2}\d){6,13}")
_CHINESE_MOBILE = re.compile(r"(?:(?:\+|00)?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}")
_CHINESE_LANDLINE = re.compile(r"\(?0(?:10|2\d|[3-9]\d{2})\)?[ -]\d{3,4}[ -]?\d{4}")
_GROUPED_CARD = re.compile(r"\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?|3\d{3}([ -])\d{6}\2\d{5}|\d{13,19}")
_PROVINCES = {
    *range(11, 16),
    *range(21, 24),
    *range(31, 38),
    *range(41, 47),
    *range(50, 55),
    *range(61, 66),
    71,
    81,
    82,
}


def luhn(digits: str) -> bool:
    """The check digit of bank cards (ISO/IEC 7812)."""
    doubled = [int(d) * (1 + i % 2) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def chinese_id(number: str) -> bool:
    """Whether 18 characters are a Chinese identity number (GB 11643): province, birthday and check digit."""
    if len(number) != 18 or not number[:17].isdigit() or int(number[:2]) not in _PROVINCES:
        return False
    try:
        born = date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    if not 1880 <= born.year <= 2100:
        return False
    total = sum(int(d) * (1 << (17 - i)) for i, d in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()


def _kind(number: str) -> str | None:
    """What a run of digits with separators is, or None: a date, an amount, a part number."""
    digits = re.sub(r"\D", "", number)
    if len(digits) >= 17 and chinese_id(re.sub(r"[^\dXx]", "", number)):
        return "ID"
    if _GROUPED_CARD.fullmatch(number) and digits[0] in "3456" and len(set(digits)) > 1 and luhn(digits):
        return "CARD"
    phones = (_CHINESE_MOBILE, _NORTH_AMERICAN, _INTERNATIONAL, _CHINESE_LANDLINE)
    return "PHONE" if any(phone.fullmatch(number) for phone in phones) else None


def mask(text: str, *, code: bool = False) -> tuple[str, Counter[str]]:
    """(the text with placeholders, how many of each)."""
    found: Counter[str] = Counter()

    def put(kind: str | None, original: str) -> str:
        if kind is None:
            return original
        found[kind] += 1
        return f"<{kind}>"

    def ip(match: re.Match[str]) -> str:
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            return match[0]
        before = match.string[max(0, match.start() - 12) : match.start()]
        # Section numbers look like addresses; addresses whose four numbers are all so small are one in five thousand.
        section = address.version == 4 and max(address.packed) < 32
        public = address.is_global and not address.is_multicast and not section and not _VERSION.search(before)
        return put("IP" if public else None, match[0])

    if "@" in text:
        text = _EMAIL.sub(lambda m: put(None if _EXAMPLE.search(m[0]) else "EMAIL", m[0]), text)
    if _DOTTED.search(text):
        text = _IPV4.sub(ip, text)
    if code:
        return text, found
    if "::" in text or text.count(":") >= 7:
        text = _IPV6.sub(ip, text)

    if not _LONG.search(text):
        return text, found

    def number(match: re.Match[str]) -> str:
        if (kind := _kind(match[0])) is not None:
            return put(kind, match[0])
        return " ".join(put(_kind(part), part) for part in match[0].split(" "))  # several numbers in a row

    return _NUMBER.sub(number, text), found


class Personal:
    """Masks personal data in the text and the messages; `meta["masked"]` and `tally` count it by kind."""

    def __init__(self) -> None:
        self.tally: Counter[str] = Counter()

    def __call__(self, document: Document) -> str | None:
        found: Counter[str] = Counter()
        if document.messages is None:
            text = document.text
            # Nearly all that is looked for has four digits; the shape of the text is known from the rules of quality.
            if shape(text).counts[DIGIT] < 4 and "@" not in text and text.count(":") < 2:
                return None
            document.text, found = mask(document.text, code=document.language == "code")
        else:
            for message in document.messages:
                message["content"], some = mask(message["content"])
                found += some
            document.text = "\n".join(message["content"] for message in document.messages) if found else document.text
        if found:
            document.meta["masked"] = dict(sorted(found.items()))
            self.tally += found
        return None
