"""Thinking apart from the answer, in the forms that models write it, however the text is cut into pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq.tokenizer import ThinkSplitter, split_thinking

# output, whether the prompt ended with the opening tag, (reasoning, content)
FORMS: dict[str, tuple[str, bool, tuple[str | None, str]]] = {
    "QwQ: the prompt opened it": (
        "Okay, so 2+2.\n\nIt is 4.\n</think>\n\nIt is **4**.",
        True,
        ("Okay, so 2+2.\n\nIt is 4.", "It is **4**."),
    ),
    "QwQ, stored: only the closing tag": ("Okay.\n</think>\n\nIt is 4.", False, ("Okay.", "It is 4.")),
    "both tags": ("<think>\nOkay.\n</think>\n\nIt is 4.\n", False, ("Okay.", "It is 4.\n")),
    "both tags, after white space": ("\n <think>Okay.</think>It is 4.", False, ("Okay.", "It is 4.")),
    "opened by the prompt and once more": ("<think>\nOkay.\n</think>\n\nIt is 4.", True, ("Okay.", "It is 4.")),
    "no thinking": ("It is 4.\n", False, (None, "It is 4.\n")),
    "no thinking, white space kept": ("  \n    x = 4", False, (None, "  \n    x = 4")),
    "thinking that is empty": ("<think>\n\n</think>\n\nIt is 4.", False, ("", "It is 4.")),
    "cut off while thinking": ("Okay, so\n", True, ("Okay, so\n", "")),
    "cut off in the closing tag": ("Okay, so</thi", True, ("Okay, so</thi", "")),
    "cut off in the opening tag": ("<thi", False, (None, "<thi")),
    "cut off behind the opening tag": ("<think>\nOkay", False, ("Okay", "")),
    "nothing": ("", False, (None, "")),
    "nothing yet thought": ("", True, ("", "")),
    "a mention in code, while thinking": (
        "I end with `</think>`, as in '</think>'.\n</think>\n4",
        True,
        ("I end with `</think>`, as in '</think>'.", "4"),
    ),
    "a mention in the answer": (
        "Okay.\n</think>\n\nIt ends with `</think>`, not </think>.",
        True,
        ("Okay.", "It ends with `</think>`, not </think>."),
    ),
    "a mention without any thinking": (
        "The tags are <think> and </think> here.",
        False,
        (None, "The tags are <think> and </think> here."),
    ),
    "a quotation that ends at the tag": ('He said "4"</think>\nIt is 4.', True, ('He said "4"', "It is 4.")),
    "a quoted tag at the very end": ("It is `</think>", True, ("It is `", "")),
    "angle brackets in thinking": ("if a </ b and </think c: <</think>d", True, ("if a </ b and </think c: <", "d")),
    "Chinese": ("嗯,先算。\n</think>\n\n答案是4。", True, ("嗯,先算。", "答案是4。")),
    "Windows line ends": ("Okay.\r\n</think>\r\n\r\n4\r\n", True, ("Okay.", "4\r\n")),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_is_split_as_meant(name: str) -> None:
    text, in_thinking, expected = FORMS[name]
    assert split_thinking(text, in_thinking) == expected


def stream(text: str, cuts: list[int], in_thinking: bool) -> tuple[str, str]:
    splitter = ThinkSplitter(in_thinking)
    ends = sorted(cut % (len(text) + 1) for cut in cuts)
    pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    parts = [*map(splitter.push, pieces), splitter.flush()]
    return "".join(reasoning for reasoning, _ in parts), "".join(content for _, content in parts)


words = ["<think>", "</think>", "<", "</", "think>", "`", '"', "'", "\n", "\n\n", "\r\n", " ", "a", "你", "“", "”"]


outputs = st.lists(st.sampled_from(words), max_size=14).map("".join)


@given(outputs, st.lists(st.integers(0, 99), max_size=20), st.booleans())
@settings(max_examples=1500, deadline=None)
def test_however_it_is_cut_the_parts_are_the_same(text: str, cuts: list[int], in_thinking: bool) -> None:
    """One piece, many pieces, single characters: the same reasoning and the same content."""
    whole = stream(text, [], in_thinking)
    assert stream(text, cuts, in_thinking) == whole
    assert stream(text, list(range(len(text))), in_thinking) == whole


@pytest.mark.parametrize("name", FORMS)
def test_streamed_character_by_character_it_is_the_same_split(name: str) -> None:
    """All forms but the one that cannot be known from its beginning: a closing tag that nothing opened."""
    text, in_thinking, (reasoning, content) = FORMS[name]
    if name == "QwQ, stored: only the closing tag":
        assert stream(text, list(range(len(text))), in_thinking) == ("", text)
    else:
        assert stream(text, list(range(len(text))), in_thinking) == (reasoning or "", content)


@given(st.text(), st.lists(st.integers(0, 99), max_size=9))
@settings(deadline=None)
def test_an_answer_without_thinking_passes_unchanged(text: str, cuts: list[int]) -> None:
    if not text.lstrip().startswith("<think>"):
        assert stream(text, cuts, False) == ("", text)


def test_thinking_is_shown_as_it_comes() -> None:
    """Only what may still belong to a tag waits: the reader is not kept waiting for the whole of the thinking."""
    splitter = ThinkSplitter(in_thinking=True)
    assert [splitter.push(piece) for piece in ("\n", "So", " 2", "\n", "+2", "<", "3", "</think>", "\n\n", "4")] == [
        ("", ""), ("So", ""), (" 2", ""), ("", ""), ("\n+2", ""), ("", ""), ("<3", ""), ("", ""), ("", ""), ("", "4"),
    ]  # fmt: skip
    assert splitter.flush() == ("", "")
    assert not splitter.in_thinking
    assert splitter.has_thinking
