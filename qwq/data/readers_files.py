"""The text of a file: its encoding found out, piece by piece, or all at once below a limit."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from qwq.data.documents import chunks
from qwq.errors import QwqError

WHOLE = 64 << 20  # bytes of a file that has to be read at once (JSON, HTML), or of a line


def whole(path: Path, limit: int = WHOLE) -> bytes:
    """All bytes of a file; `QwqError` above the limit."""
    held, size = [], 0
    for piece in chunks(path):
        size += len(piece)
        if size > limit:
            raise QwqError(f"{path} holds more than {limit >> 20} MiB, and such a file is read at once; split it")
        held.append(piece)
    return b"".join(held)


def decoded(path: Path) -> Iterator[str]:
    """Text of a file in pieces. What is not valid in its encoding becomes U+FFFD; a binary file is a `QwqError`."""
    decoder = None
    for piece in chunks(path):
        if decoder is None:
            decoder = codecs.getincrementaldecoder(encoding_of(path, piece))(errors="replace")
        yield decoder.decode(piece)
    if decoder is not None:
        yield decoder.decode(b"", final=True)


def text_lines(path: Path) -> Iterator[str]:
    """The lines of a text file, with their newlines; `QwqError` for one that is too long."""
    held: list[str] = []
    size = 0
    for piece in decoded(path):
        *ended, last = piece.split("\n")
        for line in ended:
            yield "".join(held) + line + "\n"
            held, size = [], 0
        held.append(last)
        size += len(last)
        if size > WHOLE:
            raise QwqError(f"{path} has a line of more than {WHOLE >> 20} MiB; split it")
    if size:
        yield "".join(held)


def encoding_of(path: Path | str, head: bytes) -> str:
    """UTF-8, UTF-16 with a mark, or GB18030, by the first bytes."""
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in head[: 1 << 16]:
        raise QwqError(f"{path} is binary, not text")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
        return "utf-8-sig"
    except UnicodeDecodeError:
        pass
    try:
        foreign = re.sub(r"[\x00-\x7f]", "", codecs.getincrementaldecoder("gb18030")().decode(head))
    except UnicodeDecodeError:
        return "utf-8-sig"
    chinese = len(re.findall("[\u4e00-\u9fff\u3000-\u303f\uff00-\uffef\u2010-\u203b]", foreign))
    return "gb18030" if chinese > 0.9 * len(foreign) else "utf-8-sig"
