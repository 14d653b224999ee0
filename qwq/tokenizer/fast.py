"""The one tokenizer of this project: a `tokenizers` pipeline, whatever file its vocabulary came from."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from qwq.errors import QwqError
from qwq.tokenizer.base import Tokenizer, without_surrogates

# Added tokens written like this steer a model even where their file calls them ordinary: <think>, <tool_call>, [INST].
_TAG = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")
# Control tokens that end a turn wherever they exist; published files often name only one of theirs as `eos_token`.
END_OF_TURN = (
    *("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    *("<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<|return|>", "<|call|>"),
)
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
Spec = dict[str, Any]


class FastTokenizer(Tokenizer):
    """A tokenizer run by the `tokenizers` library (Rust).

    spec: the content of a tokenizer.json. config: the content of a tokenizer_config.json (bos_token, eos_token,
    add_bos_token, chat_template are read; the rest is kept for `save`). eos_token_ids: ids known from elsewhere
    (generation_config.json). sentencepiece_model: the content of tokenizer.model, saved again as it is.
    """

    def __init__(
        self,
        spec: Spec,
        config: dict[str, Any] | None = None,
        *,
        eos_token_ids: tuple[int, ...] = (),
        sentencepiece_model: bytes | None = None,
    ) -> None:
        self._config = dict(config) if config is not None else {}
        self._sentencepiece_model = sentencepiece_model
        spec = spec | {"added_tokens": [dict(token) for token in spec["added_tokens"]]}  # changed below, here only
        self.special_tokens, self._visible = {}, set()
        _add_tokens_of_config(spec, self._config)
        for token in spec["added_tokens"]:
            if token["special"] or _TAG.fullmatch(token["content"]):
                self.special_tokens[token["content"]] = token["id"]
                if not token["special"]:
                    self._visible.add(token["id"])
                    token["special"] = True  # so that user text cannot produce it; `save` writes it as it was
        self._hidden = set(self.special_tokens.values()) - self._visible
        self._special_pattern = _special_pattern(spec["added_tokens"])
        self._inner = _inner(spec)
        self._inner_later = _inner(later) if (later := _without_first_space(spec)) is not None else self._inner
        vocab = self._inner.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        self._tokens: list[str | None] = [None] * self.vocab_size
        for token, token_id in vocab.items():
            self._tokens[token_id] = token
        self._added = {token["id"] for token in spec["added_tokens"]}
        self._bytes: dict[int, bytes] = {}
        self._read_decoder(spec["decoder"])

        self.named_tokens = {name: token for name in _NAMED if (token := self._token_of(name)) is not None}
        self.bos_token_id = self._id_of("bos_token")
        self.add_bos = self._adds_bos()
        eos = self._id_of("eos_token")
        named = [self.special_tokens[name] for name in END_OF_TURN if name in self.special_tokens]
        self.eos_token_ids = tuple(dict.fromkeys([*([] if eos is None else [eos]), *eos_token_ids, *named]))
        self.chat_template = chat_template_of(self._config)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        if special:
            return self.encode_special(text, lambda plain: plain)
        return self._encode_plain(text, first=True)

    def encode_special(self, text: str, restore: Callable[[str], str]) -> list[int]:
        if self._special_pattern is None:
            return self._encode_plain(restore(text), first=True)
        ids: list[int] = []
        end = 0
        for match in self._special_pattern.finditer(text):
            ids += self._encode_plain(restore(text[end : match.start()]), first=end == 0)
            written = match.group()
            ids.append(self.special_tokens[written if written in self.special_tokens else written.strip()])
            end = match.end()
        return ids + self._encode_plain(restore(text[end:]), first=end == 0)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        texts = [without_surrogates(text) for text in texts]
        return [encoding.ids for encoding in self._inner.encode_batch_fast(texts, add_special_tokens=False)]

    def token_bytes(self, token_id: int) -> bytes:
        spelled = self._bytes.get(token_id)
        if spelled is None:
            token = self._tokens[token_id] if 0 <= token_id < self.vocab_size else None
            spelled = b"" if token is None else token.encode() if token_id in self._added else self._spell(token)
            self._bytes[token_id] = spelled
        return spelled

    def is_hidden(self, token_id: int) -> bool:
        return token_id in self._hidden

    def save(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QwqError(f"{folder} cannot be made a folder: {error.strerror}") from error
        spec = json.loads(self._inner.to_str())
        for token in spec["added_tokens"]:
            if token["id"] in self._visible:
                token["special"] = False
        names = {token_id: name for name, token_id in self.special_tokens.items()}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | self._config
        config["add_bos_token"] = self.add_bos
        if self.chat_template != chat_template_of(config):  # else it stays in the form it came in
            config["chat_template"] = self.chat_template
        if self._id_of("eos_token") is None and self.eos_token_ids:
            config["eos_token"] = names.get(self.eos_token_ids[0], self._tokens[self.eos_token_ids[0]])
        config = {key: value for key, value in config.items() if value is not None}
        write_json(folder / "tokenizer.json", spec)
        write_json(folder / "tokenizer_config.json", config)
        (folder / "chat_template.jinja").unlink(missing_ok=True)  # of another tokenizer: it would win over ours
        generation = folder / "generation_config.json"
        if self.eos_token_ids and not generation.exists():
            write_json(generation, {"eos_token_id": list(self.eos_token_ids)})
        if self._sentencepiece_model is not None:
            write_whole(folder / "tokenizer.model", self._sentencepiece_model)

    def _encode_plain(self, text: str, *, first: bool) -> list[int]:
        """Ids of text in which no control token is looked for. `first`: it begins the input."""
        if not text:
            return []
        inner = self._inner if first else self._inner_later
        # The batch form lets go of the interpreter lock: a long prompt must not stop the server's other threads.
        return inner.encode_batch_fast([without_surrogates(text)], add_special_tokens=False)[0].ids

    def _id_of(self, key: str) -> int | None:
        """The id of the token that the config names under `key` ("eos_token")."""
        content = self._token_of(key)
        return self._inner.token_to_id(content) if content is not None else None

    def _token_of(self, key: str) -> str | None:
        named = self._config.get(key)
        return named.get("content") if isinstance(named, dict) else named

    def _adds_bos(self) -> bool:
        """What add_bos_token says; where it says nothing, what the file's post-processor does."""
        if self.bos_token_id is None:
            return False
        named = self._config.get("add_bos_token")
        return bool(named) if named is not None else self._inner.encode("").ids[:1] == [self.bos_token_id]

    def _read_decoder(self, decoder: Spec | None) -> None:
        """Find how tokens spell bytes. Steps before Fuse work on a token, steps after it on the whole text."""
        steps = [] if decoder is None else decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        self._byte_level = False
        self._byte_fallback = False
        self._token_replacements: list[tuple[str, str]] = []
        after: list[tuple[str, str]] = []
        fused = False
        for step in steps:
            match step:
                case {"type": "ByteLevel"}:
                    self._byte_level = True
                case {"type": "ByteFallback"}:
                    self._byte_fallback = True
                case {"type": "Fuse"}:
                    fused = True
                case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                    (after if fused else self._token_replacements).append((old, new))
                case {"type": "Metaspace", "replacement": old, "prepend_scheme": scheme}:
                    self._token_replacements.append((old, " "))
                    self.strips_leading_space = scheme != "never"
                case {"type": "Strip", "content": " ", "start": 1, "stop": 0}:
                    self.strips_leading_space = True
                case _:
                    raise QwqError(
                        f"tokenizer.json: decoder step {step['type']!r} is not supported; supported are byte-level "
                        "and SentencePiece-like tokenizers (ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip)"
                    )
        self.text_replacements = tuple(after)

    def _spell(self, token: str) -> bytes:
        if self._byte_level:
            # A character outside the alphabet stands for itself, as in `tokenizers`.
            return b"".join(bytes([b]) if (b := BYTE_OF_CHAR.get(c)) is not None else c.encode() for c in token)
        if self._byte_fallback and re.fullmatch("<0x[0-9A-F]{2}>", token):
            return bytes([int(token[3:5], 16)])
        for old, new in self._token_replacements:
            token = token.replace(old, new)
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


BYTE_OF_CHAR = _byte_alphabet()
CHAR_OF_BYTE = {byte: char for char, byte in BYTE_OF_CHAR.items()}


def chat_template_of(config: dict[str, Any]) -> str | None:
    """The chat template of a tokenizer_config.json: a string, or a list of named ones (then the "default")."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template


def added_token(content: str, token_id: int, *, special: bool = True) -> Spec:
    """An entry of `added_tokens` in a tokenizer.json."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": token_id, "content": content, **flags}


def bos_processor(token: str, token_id: int) -> Spec:
    """A `post_processor` that puts the beginning-of-sequence token in front, for other readers of tokenizer.json."""
    bos, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [bos, text],
        "pair": [bos, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def write_json(path: Path, content: Any) -> None:
    write_whole(path, (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync it, rename it: it is whole, or as it was before."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise QwqError(f"{path} could not be written: {error.strerror}") from error


def _inner(spec: Spec) -> tokenizers.Tokenizer:
    try:
        inner = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises bare Exception
        raise QwqError(f"tokenizer.json cannot be read by the tokenizers library: {error}") from error
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True
    return inner


def _special_pattern(added_tokens: list[Spec]) -> re.Pattern[str] | None:
    written = [
        ("\\s*" if t["lstrip"] else "") + re.escape(t["content"]) + ("\\s*" if t["rstrip"] else "")
        for t in sorted(added_tokens, key=lambda t: len(t["content"]), reverse=True)
        if t["special"]
    ]
    return re.compile("|".join(written)) if written else None


def _without_first_space(spec: Spec) -> Spec | None:
    """The pipeline for text that does not begin the input, where a Metaspace step treats the beginning otherwise."""
    text = json.dumps(spec["pre_tokenizer"])
    if '"prepend_scheme": "first"' not in text:
        return None
    return spec | {"pre_tokenizer": json.loads(text.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"'))}


def _add_tokens_of_config(spec: Spec, config: dict[str, Any]) -> None:
    """Add the tokens that only tokenizer_config.json lists or names, as `transformers` does."""
    known = {token["id"] for token in spec["added_tokens"]}
    for token_id, token in config.get("added_tokens_decoder", {}).items():
        if int(token_id) not in known:
            spec["added_tokens"].append(added_token(token["content"], int(token_id)) | token)
    written = {token["content"] for token in spec["added_tokens"]}
    vocab = spec["model"].get("vocab")
    for name in _NAMED:
        named = config.get(name)
        content = named.get("content") if isinstance(named, dict) else named
        if content is not None and content not in written and isinstance(vocab, dict) and content in vocab:
            written.add(content)
            spec["added_tokens"].append(added_token(content, vocab[content]))
    spec["added_tokens"].sort(key=lambda token: token["id"])
