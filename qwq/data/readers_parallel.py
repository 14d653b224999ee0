"""Parallel corpora: TMX, gettext catalogues, and text files in two languages that are aligned line by line."""

import ast
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from qwq.data.documents import Document, chunks
from qwq.data.readers_dialogue import pair
from qwq.data.readers_files import text_lines
from qwq.errors import QwqError

SetAside = Callable[[str, str], None]
LANGUAGES = set(
    "af ar bg bn bo ca cs da de el en es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk km kn ko ky lo lt lv "
    "mk ml mn mr ms mt my nb ne nl nn no pa pl ps pt ro ru si sk sl sq sr sv sw ta te tg th tk tl tr tt ug uk ur uz vi "
    "yi zh zu".split()
)
_XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
_PO_STRING = re.compile(r'^(msgid|msgid_plural|msgstr(?:\[\d+\])?|msgctxt)?\s*(".*")\s*$')


def read_tmx(path: Path, set_aside: SetAside) -> Iterator[Document]:
    """Translation units, one pair for each language beside the source's; in constant memory."""
    parser: Any = ElementTree.XMLPullParser(("start", "end"))
    source, body = "", None
    try:
        for piece in chunks(path):
            parser.feed(piece)
            for event, element in parser.read_events():
                if event == "start":
                    body = element if element.tag == "body" else body
                    source = element.get("srclang", source).lower() if element.tag == "header" else source
                elif element.tag == "tu":
                    sides = {
                        (tuv.get(_XML_LANG) or tuv.get("lang") or "").lower(): "".join(seg.itertext())
                        for tuv in element.iter("tuv")
                        for seg in tuv.iter("seg")
                    }
                    first = next((k for k in sides if k == source or k.split("-")[0] == source.split("-")[0]), None)
                    first = first if first is not None else next(iter(sides), "")
                    for other in (language for language in sides if language != first):
                        yield pair(first, sides[first], other, sides[other], file=path.name)
                    if body is not None:
                        body.clear()
        parser.close()
    except ElementTree.ParseError as error:
        raise QwqError(f"{path} is not whole XML ({error})") from None


def read_po(path: Path, set_aside: SetAside) -> Iterator[Document]:
    """Messages with a translation that is not marked as doubtful. The language is the header's, else the name's."""
    header: dict[str, str] = {}
    license = "unknown"
    for comments, entry in _po_entries(path):
        translation = entry.get("msgstr") or entry.get("msgstr[0]") or ""
        if entry.get("msgid") == "":
            header = dict(re.findall(r"^([\w-]+): *(.*)$", translation, re.MULTILINE))
            same = re.search(r"distributed under the same license as|License: *([\w.+-]+)", comments)
            license = (same[1] or license) if same else license
        elif entry.get("msgid") and translation and "fuzzy" not in comments:
            language = header.get("Language") or path.stem.split(".")[-1]
            document = pair("en", entry["msgid"], language, translation, file=path.name)
            document.license = license
            yield document
    if not header:
        raise QwqError(f"{path} is no gettext catalogue: it has no header entry")


def _po_entries(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(comments, {keyword: text}) of each entry, the header included."""
    entry: dict[str, str] = {}
    comments = keyword = ""
    for line in itertools.chain(text_lines(path), ["\n"]):
        line = line.strip()
        if (match := _PO_STRING.match(line)) and not line.startswith("#"):
            if match[1] == "msgid" and "msgid" in entry:  # no empty line between two entries
                yield comments, entry
                comments, entry = "", {}
            keyword = match[1] or keyword
            try:
                entry[keyword] = entry.get(keyword, "") + ast.literal_eval(match[2])
            except (SyntaxError, ValueError):
                raise QwqError(f"{path} has a text that is not closed: {match[2][:60]}") from None
        elif line.startswith("#"):
            if entry:
                yield comments, entry
                comments, entry = "", {}
            comments += line + "\n"
        elif not line and entry:
            yield comments, entry
            comments, entry = "", {}


def aligned(path: Path) -> list[Path]:
    """`path` and the files beside it that differ only in the language of the name: corpus.en, corpus.zh, a.de.txt."""
    parts = path.name.split(".")
    for i in range(len(parts) - 1, 0, -1):
        if parts[i].lower() in LANGUAGES:
            others = [path.with_name(".".join([*parts[:i], code, *parts[i + 1 :]])) for code in sorted(LANGUAGES)]
            return sorted({path, *(other for other in others if other.is_file())})
    return [path]


def language_in_name(path: Path) -> str:
    """The language that `aligned` found in the name."""
    return next(part for part in reversed(path.name.split(".")) if part.lower() in LANGUAGES).lower()


def read_aligned(files: list[Path], set_aside: SetAside) -> Iterator[Document]:
    """Line n of the first file with line n of each other. `QwqError` when they do not have as many lines."""
    languages = [language_in_name(file) for file in files]
    for count, row in enumerate(itertools.zip_longest(*map(text_lines, files))):
        if None in row:
            short = files[row.index(None)]
            raise QwqError(f"{short} ends after {count:,} lines, before {files[0].name}: these files are not aligned")
        for language, text in zip(languages[1:], row[1:], strict=True):
            if row[0].strip() or text.strip():
                yield pair(languages[0], row[0], language, text, file=files[0].name, line=count + 1)
