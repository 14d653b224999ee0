"""Training of a SentencePiece vocabulary: exact round trips, no forged control tokens, clear errors."""

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwq.errors import QwqError, UsageError
from qwq.tokenizer import FastTokenizer, Tokenizer, load_tokenizer, train_sentencepiece
from qwq.tokenizer.spm_model import ESCAPE

SPACE = "\u2581"
# Arbitrary Unicode, with what is likely to break mixed in more often than chance would.
spice = [
    SPACE,
    ESCAPE,
    ESCAPE + "0",
    ESCAPE + "1",
    "0",
    "1",
    "\ufffd",
    "\ufeff",
    "\0",
    "\x1f",
    "\r\n",
    "\n",
    "\n\n",
    "\t",
]
emoji = ["\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "e\u0301", "\u1100\u1161", "\u200d", " ", "  ", "    "]
tags = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<unk>", "<0x41>", "<", "|", ">"]
awkward = st.sampled_from([*spice, *emoji, *tags, "def f(x):\n    return x\n", "你好。"])
texts = st.lists(st.one_of(st.text(max_size=8), awkward), max_size=12).map("".join)


@given(texts)
@example("".join(map(chr, range(0x3100))))
@settings(deadline=None, max_examples=300)
def test_any_text_survives_encode_and_decode(trained: FastTokenizer, text: str) -> None:
    """Byte fallback and the escaping of U+2581 lose nothing: spaces, line ends, NUL, combining marks, emoji."""
    assert trained.decode(trained.encode(text)) == text


@given(texts)
@settings(deadline=None, max_examples=300)
def test_text_of_a_person_never_becomes_a_control_token(trained: FastTokenizer, text: str) -> None:
    """Whatever is typed, even <|im_end|> itself, is spelled out."""
    assert not set(trained.encode(text)) & set(trained.special_tokens.values())


@pytest.fixture(scope="module")
def processor(trained_folder: Path) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece's own program, reading our tokenizer.model."""
    return sentencepiece.SentencePieceProcessor(model_file=str(trained_folder / "tokenizer.model"))


@pytest.fixture(scope="module", params=["", "tokenizer.model"])
def reloaded(request: pytest.FixtureRequest, trained_folder: Path) -> Tokenizer:
    """From the folder (its tokenizer.json), and from tokenizer.model alone."""
    return load_tokenizer(trained_folder / request.param)


@given(text=texts)
@settings(deadline=None, max_examples=300)
def test_ids_are_those_of_sentencepiece_itself(
    reloaded: Tokenizer, processor: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    """The Rust pipeline does exactly what the trained tokenizer.model does, the escaping included."""
    assert reloaded.encode(text) == processor.encode(text)


def test_tokenizer_model_alone_keeps_a_literal_u2581(processor: sentencepiece.SentencePieceProcessor) -> None:
    """The escaping travels inside tokenizer.model, so other SentencePiece programs round-trip it as well."""
    text = f"a {SPACE}b{ESCAPE}1{SPACE}{SPACE} {ESCAPE}"
    assert processor.decode(processor.encode(text)) == text


def test_control_tokens_are_made_only_on_request(trained: FastTokenizer) -> None:
    """`special=True` turns the written control tokens into their ids, and only those."""
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    ids = trained.encode(text, special=True)
    names = [name for i in ids for name, token_id in trained.special_tokens.items() if token_id == i]
    assert names == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<think>"]
    assert trained.decode(ids, skip_special=False) == text
    assert trained.decode(ids) == "user\nhi\nassistant\n<think>\n"  # thinking tags are part of what a model says


def test_pieces_suit_code_and_numbers(trained: FastTokenizer) -> None:
    """Indentation is one piece, a line end may join punctuation, digits stand alone."""
    assert trained.token_bytes(trained.encode("        return")[0]) == b" " * 8
    assert trained.token_bytes(trained.encode("def f(self):\n")[-1]).endswith(b":\n")
    assert [trained.token_bytes(i) for i in trained.encode("2024")] == [b"2", b"0", b"2", b"4"]


def test_the_vocabulary_has_the_size_asked_for(trained: FastTokenizer) -> None:
    assert trained.vocab_size == 1000
    assert {trained.special_tokens[t] for t in ("<|im_end|>", "<|endoftext|>")} == set(trained.eos_token_ids)
    assert trained.eos_token_ids[0] == trained.special_tokens["<|im_end|>"]


def test_training_is_reproducible(corpus: list[str], tmp_path: Path) -> None:
    """Same text, same settings: the same file, byte for byte, when it is trained on a sample too."""
    for name in "ab":
        train_sentencepiece(corpus, 600, tmp_path / name, sample_characters=20_000, seed=3)
    assert (tmp_path / "a/tokenizer.model").read_bytes() == (tmp_path / "b/tokenizer.model").read_bytes()


def test_rare_characters_do_not_eat_a_small_vocabulary(tmp_path: Path) -> None:
    """A corpus of 3,000 different characters and a vocabulary of 1,000: two thirds of it stay free for words."""
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))
    words = "the quick brown fox jumps over one lazy dog and another sleeping cat while seven birds sing loudly. " * 60
    tokenizer = train_sentencepiece([characters, words], 700, tmp_path)
    assert len(tokenizer.encode(" the quick brown fox")) == 4
    assert tokenizer.decode(tokenizer.encode(characters)) == characters


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_an_empty_corpus_is_an_error_that_says_so(texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(QwqError, match="no text"):
        train_sentencepiece(texts, 1000, tmp_path)


def test_a_corpus_too_small_names_the_size_it_allows(tmp_path: Path) -> None:
    """The size in the message is right: with it, training works."""
    with pytest.raises(QwqError, match=r"too small for --vocab-size 4000.*at most \d+ pieces") as error:
        train_sentencepiece(["a few words, and a few more"], 4000, tmp_path / "a")
    most = int(str(error.value).split("at most ")[1].split()[0])
    assert most < 400


def test_a_vocabulary_without_room_for_bytes_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--vocab-size 100 is too small"):
        train_sentencepiece(["text"], 100, tmp_path)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\ud83d\ude00"])
def test_surrogates_become_what_utf8_can_hold(trained: FastTokenizer, text: str) -> None:
    """A lone surrogate (JSON may carry one) becomes U+FFFD, a pair its character; neither is an error."""
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert trained.decode(trained.encode(text)) == expected
    assert trained.encode_batch([text]) == [trained.encode(text)]


def test_a_batch_equals_one_by_one(trained: FastTokenizer, corpus: list[str]) -> None:
    assert trained.encode_batch(corpus) == [trained.encode(text) for text in corpus]
