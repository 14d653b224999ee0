"""Pages of the web: the article is found, what is around it goes, and an archive with a bomb in it is read past it."""

import gzip
import io
import random

import pytest

from qwq.data.sources import PathSource

pytest.importorskip("trafilatura", reason="HTML needs trafilatura: pip install 'qwq[data]'")
warcwriter = pytest.importorskip("warcio.warcwriter", reason="WARC needs warcio: pip install 'qwq[data]'")

SENTENCE = "The committee said on Friday that the new bridge will be open to all of the public by the end of the year. "
CHINESE = "今天上午，委员会宣布新的大桥将在年底之前向公众开放，届时两岸居民往返的时间会缩短一半以上。"
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>The bridge</title>{head}</head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/about">About us</a></li></ul></nav>
<article><h1>The bridge</h1><p>{text}</p><p>Work on it began in the spring of last year, and some two hundred people took part in it.</p></article>
<footer>Subscribe to our newsletter. <a href="/privacy">Privacy</a></footer></body></html>"""


def read(path):
    aside = {}
    documents = list(PathSource(path).documents(lambda file, reason: aside.update({file.rpartition("/")[2]: reason})))
    return documents, aside


def archive(path, pages, packed=True):
    """A WARC file of (url, headers, body)."""
    from warcio.statusandheaders import StatusAndHeaders

    with open(path, "wb") as out:
        writer = warcwriter.WARCWriter(out, gzip=packed)
        writer.write_record(writer.create_warc_record("http://x/", "request", payload=io.BytesIO(b"GET / HTTP/1.1")))
        for url, headers, body in pages:
            status = StatusAndHeaders("200 OK", list(headers.items()), protocol="HTTP/1.1")
            writer.write_record(
                writer.create_warc_record(url, "response", payload=io.BytesIO(body), http_headers=status)
            )
    return path


def test_an_article_is_taken_out_of_its_page(tmp_path):
    """Menus and footers go; title, and that it is news, are noted."""
    head = '<meta property="og:type" content="article"><meta name="author" content="Jo Doe">'
    (tmp_path / "a.html").write_text(PAGE.format(head=head, text=SENTENCE * 3))
    (tmp_path / "b.htm").write_bytes(PAGE.format(head="", text=CHINESE * 3).encode("gb18030"))
    (news, page), aside = read(tmp_path)
    assert news.text.count("The committee said") == 3
    assert not {"Home", "Subscribe", "Privacy"} & set(news.text.replace(".", " ").split())
    assert (news.kind, page.kind) == ("news", "web")
    assert (news.meta["title"], news.meta["file"]) == ("The bridge", "a.html")
    assert page.text.count(CHINESE) == 3
    assert not aside


def test_an_empty_page_is_set_aside(tmp_path):
    """No article, no document."""
    (tmp_path / "a.html").write_text("<html><body> </body></html>")
    assert read(tmp_path) == ([], {"a.html": "has no article in it that could be found"})


@pytest.mark.parametrize("suffix", [".warc", ".warc.gz"])
def test_pages_of_an_archive(tmp_path, suffix):
    """Responses with HTML, in the character set that the server or the page states; nothing else."""
    html = {"Content-Type": "text/html"}
    pages = [
        ("http://a.example/one", html, PAGE.format(head="", text=SENTENCE * 3).encode()),
        ("http://a.example/image", {"Content-Type": "image/png"}, b"\x89PNG"),
        (
            "http://a.example/two",
            {"Content-Type": "text/html; charset=gb2312"},
            PAGE.replace("utf-8", "gb2312").format(head="", text=CHINESE * 3).encode("gb18030"),
        ),
        (
            "http://a.example/packed",
            html | {"Content-Encoding": "gzip"},
            gzip.compress(PAGE.format(head="", text=SENTENCE * 4).encode()),
        ),
    ]
    documents, aside = read(archive(tmp_path / f"crawl{suffix}", pages, suffix.endswith("gz")))
    assert [d.meta["url"].rpartition("/")[2] for d in documents] == ["one", "two", "packed"]
    assert [d.text.count("The committee") + d.text.count("今天上午") for d in documents] == [3, 3, 4]
    assert not aside


def test_a_file_without_a_suffix_is_known_by_how_it_begins(tmp_path):
    """An archive and a page that lost their suffixes."""
    page = PAGE.format(head="", text=SENTENCE * 3)
    path = archive(tmp_path / "crawl", [("http://x/", {"Content-Type": "text/html"}, page.encode())], packed=False)
    (tmp_path / "page").write_text(page)
    assert len(read(path)[0]) == len(read(tmp_path / "page")[0]) == 1


def test_a_bomb_is_left_out_and_the_pages_around_it_are_read(tmp_path):
    """A page that unpacks to 64 MB out of 64 kB, between two good ones."""
    html = {"Content-Type": "text/html"}
    good = PAGE.format(head="", text=SENTENCE * 3).encode()
    bomb = gzip.compress(b"<p>" + b"a" * (64 << 20))
    pages = [
        ("http://x/1", html, good),
        ("http://x/2", html | {"Content-Encoding": "gzip"}, bomb),
        ("http://x/3", html, good),
    ]
    documents, aside = read(archive(tmp_path / "crawl.warc.gz", pages))
    assert [d.meta["url"] for d in documents] == ["http://x/1", "http://x/3"]
    assert aside == {"crawl.warc.gz": "1 page above 4 MiB left out (a bomb, or data)"}


def test_a_record_too_large_to_skip_ends_the_file(tmp_path, monkeypatch):
    """What stands before it is kept."""
    monkeypatch.setattr("qwq.data.readers_web.RECORD", 1 << 20)
    html = {"Content-Type": "text/html"}
    pages = [
        ("http://x/1", html, PAGE.format(head="", text=SENTENCE * 3).encode()),
        ("http://x/2", html, b"a" * (2 << 20)),
    ]
    documents, aside = read(archive(tmp_path / "crawl.warc.gz", pages))
    assert len(documents) == 1
    assert "which is no page: a bomb, or damage" in aside["crawl.warc.gz"]


@pytest.mark.parametrize("cut", [0.5, 0.95])
def test_a_truncated_archive_keeps_what_stands_before_the_end(tmp_path, cut):
    """Pages that are whole are read; one line says that the rest is missing."""
    html, chance = {"Content-Type": "text/html"}, random.Random(0)
    words = [f"{chance.getrandbits(64):x}" for _ in range(4000)]
    pages = [
        (f"http://x/{i}", html, PAGE.format(head="", text=SENTENCE * 3 + " ".join(words[i::4])).encode())
        for i in range(4)
    ]
    path = archive(tmp_path / "crawl.warc.gz", pages)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * cut)])
    documents, aside = read(path)
    assert 1 <= len(documents) < 4
    assert aside == {"crawl.warc.gz": "is damaged (truncated); copy it again"}


def test_extracted_text_of_a_crawl(tmp_path):
    """A WET file: `conversion` records of plain text."""
    with open(tmp_path / "crawl.warc.wet.gz", "wb") as out:
        writer = warcwriter.WARCWriter(out, gzip=True)
        record = writer.create_warc_record(
            "http://x/", "conversion", payload=io.BytesIO(CHINESE.encode()), warc_content_type="text/plain"
        )
        writer.write_record(record)
    (document,), aside = read(tmp_path / "crawl.warc.wet.gz")
    assert (document.text, document.meta["url"], aside) == (CHINESE, "http://x/", {})
