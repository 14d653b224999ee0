"""Published tokenizers: tokenizer.json with its neighbours, and tokenizer.model files of others."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq.errors import QwqError
from qwq.tokenizer import FastTokenizer, load_tokenizer


def write(folder: Path, **files: Any) -> Path:
    """Write `tokenizer=...` as tokenizer.json, and so on."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_end_tokens_come_from_every_place_that_names_one(byte_level: dict[str, Any], tmp_path: Path) -> None:
    """generation_config.json lists several, tokenizer_config.json one; <|im_end|> ends a turn wherever it exists."""
    ids = {token["content"]: token["id"] for token in byte_level["added_tokens"]}
    config = {"eos_token": {"content": "<|endoftext|>"}, "pad_token": None}
    folder = write(tmp_path, tokenizer=byte_level, tokenizer_config=config, generation_config={"eos_token_id": [7, 9]})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.eos_token_ids == (ids["<|endoftext|>"], 7, 9, ids["<|im_end|>"])
    assert tokenizer.named_tokens == {"eos_token": "<|endoftext|>"}


@pytest.mark.parametrize("form", ["string", "list", "file"])
def test_a_chat_template_is_found_in_each_of_its_forms(form: str, byte_level: dict[str, Any], tmp_path: Path) -> None:
    template: Any = "{{ messages[0].content }}"
    if form == "list":
        template = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]
    folder = write(
        tmp_path, tokenizer=byte_level, tokenizer_config={} if form == "file" else {"chat_template": template}
    )
    if form == "file":
        (folder / "chat_template.jinja").write_text(template)
    assert load_tokenizer(folder).chat_template == "{{ messages[0].content }}"


def test_a_folder_with_tokenizer_json_alone_will_do(byte_level: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, tokenizer=byte_level))
    assert tokenizer.chat_template is None
    assert tokenizer.decode(tokenizer.encode("a b 你")) == "a b 你"


def test_tags_that_a_file_calls_ordinary_are_still_not_typed_by_people(byte_level: dict[str, Any]) -> None:
    """Qwen3 lists <think> as not special: `tokenizers` would make it of user text. It stays visible in what is said."""
    tokenizer = FastTokenizer(byte_level)
    think = tokenizer.special_tokens["<think>"]
    assert think not in tokenizer.encode("<think>")
    assert tokenizer.encode("<think>", special=True) == [think]
    assert tokenizer.decode([think, tokenizer.special_tokens["<|im_end|>"]]) == "<think>"


def test_added_words_that_are_no_tags_stay_words(byte_level: dict[str, Any]) -> None:
    """Some vocabularies add runs of spaces or plain words as tokens; text of people uses those."""
    word = byte_level["added_tokens"][0] | {"id": 1205, "content": "hello", "special": False}
    tokenizer = FastTokenizer(byte_level | {"added_tokens": [*byte_level["added_tokens"], word]})
    assert tokenizer.encode("hello") == [1205]
    assert "hello" not in tokenizer.special_tokens
    assert tokenizer.decode([1205]) == "hello"


def test_tokens_that_only_the_config_lists_are_added(byte_level: dict[str, Any]) -> None:
    listed = {"1205": {"content": "<|tool|>", "special": True}, "1200": {"content": "<|endoftext|>", "special": True}}
    tokenizer = FastTokenizer(byte_level, {"added_tokens_decoder": listed})
    assert tokenizer.encode("<|tool|>", special=True) == [1205]
    assert tokenizer.vocab_size == 1206


def test_a_first_token_is_added_where_the_post_processor_adds_one(byte_level: dict[str, Any]) -> None:
    """`encode` adds nothing; `encode_prompt` adds the first token where config or post-processor say so."""
    begin = {"id": "<|im_start|>", "ids": [1201], "tokens": ["<|im_start|>"]}
    single = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {begin["id"]: begin}}
    config = {"bos_token": "<|im_start|>"}
    adding = FastTokenizer(byte_level | {"post_processor": processor}, config)
    assert adding.encode_prompt("a")[0] == 1201
    assert adding.encode_prompt("a")[1:] == adding.encode("a")
    assert not FastTokenizer(byte_level, config).add_bos
    assert FastTokenizer(byte_level, config | {"add_bos_token": True}).add_bos
    assert not FastTokenizer(byte_level | {"post_processor": processor}, config | {"add_bos_token": False}).add_bos


def test_an_id_beyond_the_vocabulary_is_no_text(byte_level: dict[str, Any]) -> None:
    """A model's embedding is padded: it can, in principle, say such an id."""
    tokenizer = FastTokenizer(byte_level)
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""
    assert tokenizer.token_bytes(-1) == b""


@pytest.fixture(scope="module")
def llama_model(corpus: list[str]) -> bytes:
    """A tokenizer.model as Llama 2 trained its own: a space put in front, <s>, </s>, byte fallback, identity rules."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in corpus for line in text.splitlines()]),
        model_writer=model,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<pad>"],
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def llama_folder(llama_model: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    (folder / "tokenizer.model").write_bytes(llama_model)
    return folder


@given(text=st.text(st.characters(exclude_characters="\u2581", codec="utf-8")))
@settings(deadline=None, max_examples=200)
def test_a_llama_tokenizer_model_gives_sentencepieces_ids(llama_folder: Path, llama_model: bytes, text: str) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=llama_model)
    tokenizer = load_tokenizer(llama_folder)
    assert tokenizer.encode(text) == processor.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_llama_tokenizer_model_adds_its_first_token(llama_folder: Path, tmp_path: Path) -> None:
    """<s> and </s> take their roles, also in the tokenizer.json that is saved and in AutoTokenizer."""
    tokenizer = load_tokenizer(llama_folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.add_bos) == (1, (2,), True)
    tokenizer.save(tmp_path)
    ids = tokenizer.encode_prompt("Are you coming?")
    assert load_tokenizer(tmp_path).encode_prompt("Are you coming?") == ids
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("Are you coming?") == ids
    assert theirs.decode(ids, skip_special_tokens=True) == "Are you coming?"


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_metaspace_puts_its_space_where_transformers_puts_it(scheme: str, llama_folder: Path, tmp_path: Path) -> None:
    """Newer Llama files put a space before the first word only: after a control token there is none."""
    load_tokenizer(llama_folder).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    changed = {"normalizer": None, "pre_tokenizer": metaspace, "post_processor": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    ours = load_tokenizer(tmp_path)
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path, add_bos_token=False)
    for text in ("river </s>river</s> river", "</s>river", " river", "river"):
        assert ours.encode(text, special=True) == theirs.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "tokenizer.json cannot be read as JSON"),
        ("tokenizer.json", b"[]", "must hold a JSON object"),
        ("tokenizer.json", b"{}", "is no tokenizer.json"),
        ("tokenizer.model", b"not a model", "is not a SentencePiece model"),
        ("qwen.tiktoken", b"aGk= 0\n", "cut short or damaged"),
        ("qwen.tiktoken", b"aGk= 0\nno\n", "line 2"),
        ("cl100k_base.tiktoken", b"aGk= 0\n", "only Qwen's tiktoken files"),
        ("vocab.gguf", b"GGUFxx", "is not a GGUF file"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(QwqError, match=message) as error:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_tokenizer_model_cut_short_is_an_error(llama_model: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(llama_model[:-100])
    with pytest.raises(QwqError, match="cut short"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("missing", ["nowhere", "."])
def test_a_place_without_a_tokenizer_says_what_was_expected(missing: str, tmp_path: Path) -> None:
    with pytest.raises(QwqError, match="no tokenizer"):
        load_tokenizer(tmp_path / missing)


def test_a_kind_that_is_not_supported_is_refused_by_name(byte_level: dict[str, Any], tmp_path: Path) -> None:
    wordpiece = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    with pytest.raises(QwqError, match="WordPiece"):
        load_tokenizer(write(tmp_path, tokenizer=byte_level | {"decoder": wordpiece}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "unigram"}, "unigram"),
        ({"normalization_rule_name": "nmt_nfkc", "model_type": "bpe"}, "nmt_nfkc"),
    ],
)
def test_other_sentencepiece_models_are_refused_by_name(
    options: dict[str, str], message: str, corpus: list[str], tmp_path: Path
) -> None:
    lines = [line for text in corpus for line in text.splitlines()]
    with (tmp_path / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, vocab_size=500, minloglevel=2, **options
        )
    with pytest.raises(QwqError, match=message):
        load_tokenizer(tmp_path)
