"""Streaming: whole characters only, and joined exactly what `decode` says."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwq.tokenizer import FastTokenizer
from qwq.tokenizer.spm_model import ESCAPE


@pytest.fixture(scope="module", params=["sentencepiece", "byte-level", "with a leading space"])
def tokenizer(request: pytest.FixtureRequest, trained: FastTokenizer, byte_level: dict[str, Any]) -> FastTokenizer:
    if request.param == "sentencepiece":
        return trained
    if request.param == "byte-level":
        return FastTokenizer(byte_level)
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoder = {"type": "Sequence", "decoders": [byte_level["decoder"], {"type": "Fuse"}, strip]}
    return FastTokenizer(byte_level | {"decoder": decoder})


def stream(tokenizer: FastTokenizer, ids: list[int], *, skip_special: bool = True) -> list[str]:
    decoder = tokenizer.stream(skip_special=skip_special)
    return [*(decoder.push(i) for i in ids), decoder.flush()]


@given(ids=st.lists(st.integers(0, 1100), max_size=60), skip=st.booleans())
@settings(deadline=None, max_examples=300)
def test_any_ids_at_all_stream_to_what_decode_says(tokenizer: FastTokenizer, ids: list[int], skip: bool) -> None:
    """Also ids that spell no UTF-8, control tokens, and ids beyond the vocabulary."""
    assert "".join(stream(tokenizer, ids, skip_special=skip)) == tokenizer.decode(ids, skip_special=skip)


@given(ids=st.lists(st.sampled_from(sorted({*f"01a{ESCAPE}\u2581".encode(), *"\u4f60".encode()})), max_size=30))
@settings(deadline=None, max_examples=300)
def test_half_an_escape_waits_like_half_a_character(trained: FastTokenizer, ids: list[int]) -> None:
    """Bytes of the escape character and its two followers, in any order a model may write them."""
    tokens = [trained.encode("\u2581")[0] - ESCAPE.encode()[0] + byte for byte in ids]
    assert b"".join(map(trained.token_bytes, tokens)) == bytes(ids)
    assert "".join(stream(trained, tokens)) == trained.decode(tokens)


@given(text=st.text(max_size=30))
@example(text="你好\U0001f469\u200d\U0001f467\u2581")
@settings(deadline=None, max_examples=200)
def test_no_piece_ever_shows_a_broken_character(trained: FastTokenizer, text: str) -> None:
    """Every piece is a continuation of the text: what is on the screen is at all times a prefix of the answer."""
    shown = ""
    for piece in stream(trained, trained.encode(text)):
        shown += piece
        assert text.startswith(shown)
    assert shown == text


def test_a_character_cut_off_at_the_end_becomes_one_replacement(trained: FastTokenizer) -> None:
    """At the length limit half a character may be left; flush says so, and the decoder can be used again."""
    half = trained.encode("\U0001f469")[:2]
    decoder = trained.stream()
    assert [decoder.push(i) for i in half] == ["", ""]
    assert decoder.flush() == "\ufffd" == trained.decode(half)
    assert "".join(map(decoder.push, trained.encode("ab"))) == "ab"
    assert decoder.flush() == ""
