"""Exact deduplication."""

from hypothesis import given
from hypothesis import strategies as st

from qwq.data.clean import clean
from qwq.data.dedup import ExactDedup, ParagraphDedup, sketch, without_lines
from qwq.data.documents import Document


def cleaned(text: str, language: str = "en") -> Document:
    document = Document(text, "s", language=language)
    assert clean(document) is None
    return document


@given(st.lists(st.sampled_from(["one two", "ONE, two!", "three", "四五六", "四五，六。", "seven"]), max_size=30))
def test_each_normal_form_is_kept_once_and_every_drop_names_the_kept_one(texts):
    """Case and punctuation do not make a text new; the record points at a document that is really kept."""
    matches = []
    dedup = ExactDedup(lambda document, kept: matches.append((f"{document.name:016x}", kept)))
    documents = [cleaned(text) for text in texts]
    kept = [d for d in documents if dedup(sketch(d)) is None]
    forms = ["".join(c for c in text.lower() if c.isalnum()) for text in texts]
    assert ["".join(c for c in d.text.lower() if c.isalnum()) for d in kept] == list(dict.fromkeys(forms))
    assert len(kept) + len(matches) == len(texts)
    by_name = {d.hash: "".join(c for c in d.text.lower() if c.isalnum()) for d in documents}
    assert all(by_name[dropped] == by_name[name] for dropped, name in matches)
    assert {name for _, name in matches} <= {d.hash for d in kept}


def test_code_differs_by_its_operators():
    """a + b and a - b are two programs; a+b and a + b are one."""
    dedup = ExactDedup(lambda document, kept: None)
    assert [dedup(sketch(cleaned(t, "code"))) for t in ("a + b", "a - b", "a+b")] == [None, None, "duplicate"]


def test_long_paragraphs_are_kept_once():
    """The second page with the same notice loses the notice, and a page of nothing else goes."""
    notice = "All rights reserved. " * 10
    dedup = ParagraphDedup()
    pages = [cleaned(f"{notice}\nThis page is about number {i}: {i * 'words and '}more.\n" * 1) for i in (20, 30)]
    pages.append(cleaned(notice))
    (first, second, third) = [dedup(sketch(page)) for page in pages]
    assert first == (None, [])
    assert third[0] == "repeated_paragraphs"
    assert second[0] is None
    left = without_lines(pages[1].text, second[1])
    assert "rights" not in left
    assert left.startswith("This page is about number 30")
    assert dedup.removed_paragraphs == 2


def test_code_and_dialogue_keep_their_repetitions():
    """A licence header is part of a file, and people do say the same thing twice."""
    text = "# The same long comment stands in front of every single file of this project, as it does in many.\n" * 3
    dedup = ParagraphDedup()
    for document in (cleaned(text, "code"), cleaned(text, "code")):
        assert dedup(sketch(document)) == (None, [])
    for document in (cleaned(text), cleaned(text)):
        document.kind = "dialogue"
        assert dedup(sketch(document)) == (None, [])
