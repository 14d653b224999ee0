"""Every kind of file is known for what it is: books, chats, threads, code with its licence, translations, tables."""

import json

import pytest

from qwq.data.sources import HubSource, PathSource, license_of
from qwq.errors import QwqError, UsageError

PROSE = "The committee said on Friday that the new bridge will be open to all of the public by the end of the year."


def read(path):
    aside = {}
    documents = list(PathSource(path).documents(lambda file, reason: aside.update({file.rpartition("/")[2]: reason})))
    return documents, aside


def write(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(document):
    return [(message["role"], message["content"]) for message in document.messages]


def test_a_book_of_gutenberg_is_the_book_alone(tmp_path):
    """Header and licence go, title and author are kept, wrapped paragraphs become lines and verse keeps its own."""
    wrapped = (
        "It was the best of times, it was the worst of times, it was the age of\nwisdom, it was the age of foolishness."
    )
    verse = "Tyger Tyger, burning bright,\nIn the forests of the night;"
    (tmp_path / "98.txt").write_text(
        "The Project Gutenberg eBook of A Tale\n\nTitle: A Tale of Two Cities\nAuthor: Charles Dickens\n\nLanguage: English\n\n"
        f"*** START OF THE PROJECT GUTENBERG EBOOK A TALE OF TWO CITIES ***\n\n{wrapped}\n\n{verse}\n\n"
        "*** END OF THE PROJECT GUTENBERG EBOOK A TALE OF TWO CITIES ***\nFULL LICENSE of 300 lines"
    )
    (book,), aside = read(tmp_path / "98.txt")
    assert book.text.strip() == wrapped.replace("\n", " ") + "\n\n" + verse
    assert (book.kind, book.meta["title"], book.meta["author"]) == ("book", "A Tale of Two Cities", "Charles Dickens")
    assert book.license == "Public domain (US)"
    assert not aside


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        {"turns": [{"speaker": "USER", "utterance": "Hi", "frames": []}, {"speaker": "SYSTEM", "utterance": "Hello"}]},
        {"dialog": ["Hi", "Hello"]},
        {"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>"},
        {"instruction": "Hi", "input": "", "output": "Hello"},
        {"question": "Hi", "answer": "Hello"},
        {"title": "Hi", "author": "a", "comments": [{"author": "b", "body": "Hello"}]},
    ],
)
def test_each_form_of_a_chat_is_the_same_chat(tmp_path, row):
    """ChatML, ShareGPT, Schema-Guided Dialogue, plain turns, instructions, questions, a post with its answer."""
    (document,), aside = read(write(tmp_path / "a.jsonl", row))
    assert turns(document) == [("user", "Hi"), ("assistant", "Hello")]
    assert (document.kind, aside) == ("dialogue", {})


THREAD = {"id": "t1", "title": "Which tea?", "author": "a", "subreddit": "tea"}


def test_a_thread_becomes_a_chat_for_each_answer(tmp_path):
    """The best-rated replies are followed; what was deleted ends a chat; a question without an answer is none."""
    comments = [
        {"author": "b", "body": "Green.", "score": 5, "replies": [
            {"author": "c", "body": "No.", "score": 1},
            {"author": "a", "body": "Why?", "score": 9, "replies": [{"author": "b", "body": "It is mild.", "score": 1}]},
        ]},
        {"author": "d", "body": "Black.", "score": 7, "replies": [{"author": "a", "body": "[deleted]", "replies": [{"body": "?"}]}]},
        {"author": "e", "body": "[removed]", "score": 1},
    ]  # fmt: skip
    documents, aside = read(write(tmp_path / "a.jsonl", THREAD | {"selftext": "I am new.", "comments": comments}))
    asked = ("user", "Which tea?\n\nI am new.")
    assert [turns(d) for d in documents] == [
        [asked, ("assistant", "Black.")],
        [asked, ("assistant", "Green."), ("user", "Why?"), ("assistant", "It is mild.")],
    ]
    assert documents[0].meta["subreddit"] == "tea"
    assert not aside


def test_a_thread_of_the_interface_and_one_of_a_dump_are_the_same(tmp_path):
    """Reddit's listings, nested, and comments that only name their parents, one a line."""

    def comment(name, author, body, *replies):
        nested = {"kind": "Listing", "data": {"children": list(replies)}} if replies else ""
        return {"kind": "t1", "data": {"name": name, "author": author, "body": body, "replies": nested, "score": 1}}

    listings = [
        {"kind": "Listing", "data": {"children": [{"kind": "t3", "data": THREAD}]}},
        {"kind": "Listing", "data": {"children": [comment("t1_1", "b", "Green.", comment("t1_2", "a", "Why?"))]}},
    ]
    (tmp_path / "a.json").write_text(json.dumps(listings))
    assert [turns(d) for d in read(tmp_path / "a.json")[0]] == [[("user", "Which tea?"), ("assistant", "Green.")]]
    rows = [
        {"id": "1", "link_id": "t3_9", "parent_id": "t3_9", "author": "b", "body": "Green."},
        {"id": "2", "link_id": "t3_9", "parent_id": "t1_1", "author": "a", "body": "Why?"},
        {"id": "3", "link_id": "t3_8", "parent_id": "t3_8", "author": "c", "body": "Alone."},
        {"text": "a plain row"},
    ]
    documents, aside = read(write(tmp_path / "b.jsonl", *rows))
    assert [turns(d) if d.messages else d.text for d in documents] == [
        [("user", "Green."), ("assistant", "Why?")],
        "a plain row",
    ]
    assert not aside


def test_news_are_rows_with_a_title_and_a_date(tmp_path):
    """The headline stands before the text; where and when is kept."""
    (document,), _ = read(write(tmp_path / "a.jsonl", {"title": "Bridge opens", "date": "2020-01-02", "text": PROSE}))
    assert (document.kind, document.text) == ("news", f"Bridge opens\n\n{PROSE}")
    assert document.meta == {"title": "Bridge opens", "date": "2020-01-02"}


def test_a_code_tree_has_languages_and_licences(tmp_path):
    """By suffix, name or first line; the licence of a file, else of the nearest folder that states one."""
    mit = (
        "MIT License\n\nPermission is hereby granted, free of charge, to any person\nobtaining a copy of this software"
    )
    (tmp_path / "LICENSE").write_text(mit)
    (tmp_path / "a.rs").write_text("fn main() {}\n")
    (tmp_path / "Makefile").write_text("all:\n\techo\n")
    (tmp_path / "run").write_text("#!/usr/bin/env python3\nprint(1)\n")
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "COPYING").write_text("            Apache License\n      Version 2.0, January 2004\n")
    (tmp_path / "sub" / "deep" / "b.go").write_text("package main\n")
    (tmp_path / "sub" / "c.c").write_text("/* SPDX-License-Identifier: GPL-2.0-only */\nint x;\n")
    documents, aside = read(tmp_path)
    found = {d.meta["file"]: (d.meta["programming_language"], d.license) for d in documents}
    assert found == {
        "Makefile": ("makefile", "MIT"),
        "a.rs": ("rust", "MIT"),
        "run": ("python", "MIT"),
        "b.go": ("go", "Apache-2.0"),
        "c.c": ("c", "GPL-2.0-only"),
    }
    assert not aside


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007 ... the GNU Affero General Public License", "GPL-3.0"),
        ("Mozilla Public License Version 2.0 ... GNU General Public License, Version 2.0", "MPL-2.0"),
        ("Redistributions in binary form must reproduce the above copyright notice, this list", "BSD-2-Clause"),
        ("Redistributions in binary form must reproduce the above copyright notice ... may be used to endorse or promote", "BSD-3-Clause"),
        ("# Licensed under the Apache License, Version 2.0 (the\n# License)", "Apache-2.0"),
        ("All rights reserved.", ""),
    ],
)  # fmt: skip
def test_licences_are_told_apart(text, name):
    """Those that mention others, and notices in comments."""
    assert license_of(text) == name


TMX = """<?xml version="1.0" encoding="UTF-8"?><tmx version="1.4"><header srclang="en-US"/><body>
<tu><tuv xml:lang="en-US"><seg>Save <bpt i="1">the</bpt> file.</seg></tuv><tuv xml:lang="zh-CN"><seg>保存文件。</seg></tuv>
<tuv xml:lang="de-DE"><seg>Datei speichern.</seg></tuv></tu>
<tu><tuv xml:lang="zh-CN"><seg>打开</seg></tuv><tuv xml:lang="en-US"><seg>Open</seg></tuv></tu></body></tmx>"""
PO = r"""# Chinese translation
# This file is distributed under License: GPL-2.0
msgid ""
msgstr ""
"Language: zh_CN\n"
"Content-Type: text/plain; charset=UTF-8\n"

#: a.c:1
msgid ""
"Save the "
"file\n"
msgstr "保存\t文件\n"
#, fuzzy
msgid "Open"
msgstr "关闭"

msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d 个文件"

msgid "Untranslated"
msgstr ""
#~ msgid "Old"
#~ msgstr "旧"
"""


def test_translation_memories(tmp_path):
    """A pair for each language beside the source's, with it first; marks inside a segment go."""
    (tmp_path / "a.tmx").write_text(TMX)
    documents, aside = read(tmp_path / "a.tmx")
    assert [(d.language, d.text) for d in documents] == [
        ("en-zh", "Save the file.\n保存文件。"),
        ("en-de", "Save the file.\nDatei speichern."),
        ("en-zh", "Open\n打开"),
    ]
    assert (documents[0].meta["languages"], documents[0].kind, aside) == (["en", "zh"], "parallel", {})


def test_gettext_catalogues(tmp_path):
    """What is translated for sure; texts over several lines are one, and the first plural stands for all."""
    (tmp_path / "zh_CN.po").write_text(PO)
    documents, aside = read(tmp_path / "zh_CN.po")
    assert [d.text for d in documents] == ["Save the file\n保存 文件", "%d file\n%d 个文件"]
    assert {(d.language, d.license) for d in documents} == {("en-zh", "GPL-2.0")}
    assert not aside


def test_aligned_text_files(tmp_path):
    """Two or three files whose names differ in the language; a folder has them once; empty lines are no pairs."""
    (tmp_path / "talks.en").write_text("One.\n\nTwo.\n")
    (tmp_path / "talks.zh").write_text("一。\n\n二。\n")
    (tmp_path / "talks.de").write_text("Eins.\n\nZwei.\n")
    (tmp_path / "notes.en.txt").write_text("One.\n")
    (tmp_path / "notes.zh.txt").write_text("一。\n")
    (tmp_path / "alone.en.txt").write_text("Alone.")
    documents, aside = read(tmp_path)
    assert [(d.language, d.text) for d in documents] == [
        ("", "Alone."),
        ("en-zh", "One.\n一。"),
        ("de-en", "Eins.\nOne."),
        ("de-zh", "Eins.\n一。"),
        ("de-en", "Zwei.\nTwo."),
        ("de-zh", "Zwei.\n二。"),
    ]
    assert not aside
    (tmp_path / "talks.zh").write_text("一。\n")
    said = read(tmp_path / "talks.de")[1]["talks.de"]
    assert said.endswith("talks.zh ends after 1 lines, before talks.de: these files are not aligned")


def test_tables_and_data_sets_of_a_hub(tmp_path):
    """CSV, Parquet and a folder that `datasets` reads give the same documents; so does a pair of translations."""
    rows = [
        {"text": PROSE, "id": "1", "license": "MIT"},
        {"text": 'He said, "two\nlines".', "id": "2", "license": "MIT"},
    ]
    (tmp_path / "a.csv").write_text("id,TEXT,license\n1," + PROSE + ',MIT\n2,"He said, ""two\nlines"".",MIT\n')
    documents, aside = read(tmp_path / "a.csv")
    assert [(d.text, d.license, d.meta) for d in documents] == [(r["text"], "MIT", {"id": r["id"]}) for r in rows]
    assert not aside
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow: pip install 'qwq[data]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "hub").mkdir()
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "hub" / "train.parquet")
    assert read(tmp_path / "hub")[0][0].text == documents[0].text
    pytest.importorskip("datasets", reason="a hub needs datasets: pip install 'qwq[data]'")
    from_hub = list(HubSource(f"hf:{tmp_path / 'hub'}").documents(lambda file, reason: None))
    assert [(d.text, d.license) for d in from_hub] == [(d.text, d.license) for d in documents]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    """No traceback of a dozen libraries."""
    pytest.importorskip("datasets", reason="a hub needs datasets: pip install 'qwq[data]'")

    def refuse(*arguments, **options):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(QwqError, match=r"^hf:org/name cannot be read: no route to host$"):
        next(HubSource("hf:org/name").documents(lambda file, reason: None))


def test_what_no_reader_knows_is_refused(tmp_path):
    """A file given by name is an error; in a folder it is passed by."""
    (tmp_path / "a.bin").write_bytes(b"\x00\x01")
    (tmp_path / "b").write_bytes(b"\x7fELF")
    assert read(tmp_path) == ([], {})
    with pytest.raises(UsageError, match="no reader for this kind of file"):
        PathSource(tmp_path / "b")
