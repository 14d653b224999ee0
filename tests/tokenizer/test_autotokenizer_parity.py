"""What `save` writes is read by `transformers.AutoTokenizer` with the same ids, the same text, the same template."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq.errors import QwqError
from qwq.tokenizer import FastTokenizer, load_tokenizer
from qwq.tokenizer.spm_model import ESCAPE

AutoTokenizer: Any = pytest.importorskip("transformers").AutoTokenizer

# Texts, spiced with U+2581, its escape, and control tokens (which both sides are asked to make into ids).
spice = ["\u2581", ESCAPE, ESCAPE + "0", ESCAPE + "1", " ", "  ", "\n", "\0", "\r\n", "\ufffd", "1", "e\u0301"]
tags = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|endoftext|>"]
texts = st.lists(st.one_of(st.text(max_size=8), st.sampled_from(spice + tags)), max_size=12).map("".join)


@pytest.fixture(scope="module")
def theirs(trained_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(trained_folder)


@given(text=texts)
@settings(deadline=None, max_examples=300)
def test_trained_vocabulary_gives_identical_ids_and_text(trained: FastTokenizer, theirs: Any, text: str) -> None:
    ids = trained.encode(text, special=True)
    assert theirs.encode(text) == ids
    for skip in (True, False):
        assert theirs.decode(ids, skip_special_tokens=skip) == trained.decode(ids, skip_special=skip)
    assert trained.decode(ids, skip_special=False) == text


def test_names_and_template_are_read_as_written(trained: FastTokenizer, theirs: Any) -> None:
    assert theirs.chat_template == trained.chat_template
    assert theirs.eos_token_id == trained.eos_token_ids[0]
    assert theirs.convert_tokens_to_ids(theirs.pad_token) == trained.special_tokens["<|endoftext|>"]
    assert len(theirs) == trained.vocab_size


def test_saving_what_was_loaded_changes_nothing(trained_folder: Path, tmp_path: Path) -> None:
    """tokenizer.json, tokenizer_config.json, tokenizer.model and the end tokens: byte for byte the same."""
    load_tokenizer(trained_folder).save(tmp_path / "again")
    names = sorted(path.name for path in trained_folder.iterdir())
    assert names == ["generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (trained_folder / name).read_bytes()


def test_saving_over_another_tokenizer_leaves_none_of_its_template(trained: FastTokenizer, tmp_path: Path) -> None:
    """A chat_template.jinja of the tokenizer that was there before would win over ours in every reader."""
    (tmp_path / "chat_template.jinja").write_text("stale")
    trained.save(tmp_path)
    assert load_tokenizer(tmp_path).chat_template == trained.chat_template
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == trained.chat_template


def test_a_place_that_cannot_be_written_is_named(trained: FastTokenizer, tmp_path: Path) -> None:
    """A file where the folder should be; a disk that is full (or here: a name that is taken) leaves no rest behind."""
    (tmp_path / "file").write_text("")
    with pytest.raises(QwqError, match="file cannot be made a folder"):
        trained.save(tmp_path / "file")
    (tmp_path / "out" / "tokenizer.json").mkdir(parents=True)
    with pytest.raises(QwqError, match=r"tokenizer.json could not be written"):
        trained.save(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tokenizer.json"]


@given(text=texts)
@settings(deadline=None, max_examples=200)
def test_byte_level_vocabulary_gives_identical_ids_and_text(byte_level_folder: Path, text: str) -> None:
    ours, theirs = load_tokenizer(byte_level_folder), AutoTokenizer.from_pretrained(byte_level_folder)
    ids = ours.encode(text, special=True)
    assert theirs.encode(text) == ids
    for skip in (True, False):
        assert theirs.decode(ids, skip_special_tokens=skip) == ours.decode(ids, skip_special=skip)


@pytest.fixture(scope="module")
def byte_level_folder(byte_level: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("byte-level")
    FastTokenizer(byte_level, {"eos_token": "<|im_end|>"}).save(folder)
    return folder
