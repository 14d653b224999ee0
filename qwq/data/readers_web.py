"""Pages of the web: HTML files and WARC archives, the article out of each by trafilatura (Barbaresi 2021)."""

import codecs
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qwq.data.documents import Document
from qwq.data.readers_files import encoding_of, whole
from qwq.errors import QwqError

SetAside = Callable[[str, str], None]
PAGE = 4 << 20  # bytes of a page, above which it is data
RECORD = 256 << 20  # bytes of a WARC record: to skip more than that takes too long, and it is no page
_META_CHARSET = re.compile(rb"""<meta[^>]+charset=["']?\s*([\w-]+)""", re.IGNORECASE)
_ARTICLE = re.compile(rb"""property=["']og:type["'][^>]+content=["']article|"@type"\s*:\s*"\w*NewsArticle""")
_PARAGRAPH_END = re.compile(r"[ \t]*\n[ \t\n]*")


def extract(page: bytes, url: str = "", charset: str = "") -> Document | None:
    """The article of an HTML page, or None where there is none. charset: what the server said."""
    try:
        import trafilatura
    except ImportError:
        raise QwqError("HTML needs trafilatura: pip install 'qwq[data]'") from None
    found: Any = trafilatura.bare_extraction(
        _decode(page, charset), url=url or None, with_metadata=True, include_comments=False
    )
    if found is None or not found.text or not found.text.strip():
        return None
    meta: dict = {"extractor": f"trafilatura {trafilatura.__version__}"}
    meta |= {key: value for key in ("title", "author", "date", "sitename") if (value := getattr(found, key))}
    news = bool(_ARTICLE.search(page[: 1 << 17]))
    text = _PARAGRAPH_END.sub("\n", found.text.strip())
    return Document(text, "", found.license or "unknown", kind="news" if news else "web", meta=meta)


def _decode(page: bytes, charset: str) -> str:
    declared = _META_CHARSET.search(page[:4096])
    for name in (charset, declared[1].decode("ascii") if declared else "", encoding_of("page", page[: 1 << 16])):
        try:
            if name and codecs.lookup(name):
                # GB2312 pages are GB18030 in practice.
                return page.decode("gb18030" if name.lower() in ("gb2312", "gbk") else name)
        except (LookupError, UnicodeDecodeError):
            continue
    return page.decode("utf-8", "replace")


def read_html(path: Path, set_aside: SetAside) -> Iterator[Document]:
    """One page."""
    document = extract(whole(path, PAGE))
    if document is None:
        raise QwqError(f"{path} has no article in it that could be found")
    document.meta = {"file": path.name} | document.meta
    yield document


def read_warc(path: Path, set_aside: SetAside) -> Iterator[Document]:
    """The pages of a WARC file (.warc, .warc.gz) and the texts of a WET file, in constant memory.

    A page above 4 MiB when decompressed is left out and counted; a record above 256 MiB ends the file.
    """
    try:
        from warcio.archiveiterator import ArchiveIterator
        from warcio.exceptions import ArchiveLoadFailed
    except ImportError:
        raise QwqError(f"{path} needs warcio: pip install 'qwq[data]'") from None
    large = without = 0
    try:
        with open(path, "rb") as file:
            for record in _whole_records(ArchiveIterator(file)):
                length = record.rec_headers.get_header("Content-Length") or "0"
                if not length.isdigit() or int(length) > RECORD:
                    raise QwqError(f"{path} has a record of {length} bytes, which is no page: a bomb, or damage")
                text = record.rec_type == "conversion"
                headers = record.http_headers if record.rec_type == "response" else record.rec_headers
                kind = "" if headers is None else (headers.get_header("Content-Type") or "").lower()
                if not text and (record.rec_type not in ("response", "resource") or "html" not in kind):
                    continue
                page = _read(record.content_stream(), PAGE)
                if page is None:
                    large += 1
                    continue
                _end(record)
                url = record.rec_headers.get_header("WARC-Target-URI") or ""
                meta = {"url": url, "crawled": record.rec_headers.get_header("WARC-Date") or ""}
                document: Document | None
                if text:
                    document = Document(page.decode("utf-8", "replace"), "", kind="web", meta={"extractor": "wet"})
                else:
                    charset = re.search(r"charset=[\"']?([\w-]+)", kind)
                    document = extract(page, url, charset[1] if charset else "")
                if document is None:
                    without += 1
                    continue
                document.meta = meta | document.meta
                yield document
    except (ArchiveLoadFailed, EOFError, OSError, ValueError) as error:
        raise QwqError(f"{path} is damaged ({str(error).splitlines()[0]}); copy it again") from None
    finally:
        if large:
            set_aside(str(path), f"{large:,} page{'s'[: large > 1]} above {PAGE >> 20} MiB left out (a bomb, or data)")
        if without:
            set_aside(str(path), f"{without:,} page{'s'[: without > 1]} without an article left out")


def _whole_records(archive: Any) -> Iterator[Any]:
    """The records, each read to its end before the next."""
    for record in archive:
        yield record
        _end(record)


def _end(record: Any) -> None:
    """Read what is left; `EOFError` when a record is shorter than it says, which warcio does not notice."""
    while record.raw_stream.read(1 << 20):
        pass
    if record.raw_stream.limit:
        raise EOFError("truncated")


def _read(stream, limit: int) -> bytes | None:
    """All bytes of a stream, or None above the limit."""
    held, size = [], 0
    while piece := stream.read(1 << 16):
        size += len(piece)
        if size > limit:
            return None
        held.append(piece)
    return b"".join(held)
