"""What every tokenizer of this project offers, and the decoder that streams whole characters."""

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path

_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer(ABC):
    """Text to ids and back.

    `vocab_size` counts every id, control tokens included. `special_tokens` maps the text of each control token to its
    id; what a person types never becomes one of them unless `special=True` is asked for. `encode` adds nothing of its
    own: where `add_bos` is true, the caller of a raw prompt puts `bos_token_id` in front (`encode_prompt` does it; a
    chat template writes its own). `eos_token_ids` are all ids that end a reply.
    """

    vocab_size: int
    special_tokens: dict[str, int]
    bos_token_id: int | None
    add_bos: bool
    eos_token_ids: tuple[int, ...]
    chat_template: str | None

    # How bytes become text after the tokens are joined: (from, to) replacements in order, and whether one leading
    # space, which the encoder added, is taken away again.
    text_replacements: tuple[tuple[str, str], ...] = ()
    strips_leading_space: bool = False

    named_tokens: dict[str, str]  # "bos_token" -> "<s>": what templates ask for by name

    @abstractmethod
    def encode_special(self, text: str, restore: Callable[[str], str]) -> list[int]:
        """Ids of `text` with control tokens as ids; every stretch between them passes through `restore` first."""

    @abstractmethod
    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of `text`. With `special=True` the text "<|im_start|>" becomes its control id; without, never."""

    @abstractmethod
    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`[encode(text) for text in texts]`, on all cores."""

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for; b"" for an id beyond the vocabulary (rows that pad a model's embedding)."""

    @abstractmethod
    def is_hidden(self, token_id: int) -> bool:
        """Whether `decode(skip_special=True)` leaves this token out. Thinking tags are control tokens, yet shown."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `transformers.AutoTokenizer` reads identically."""

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a raw prompt: `encode`, after the beginning-of-sequence token where the model wants one."""
        ids = self.encode(text)
        return [self.bos_token_id, *ids] if self.add_bos and self.bos_token_id is not None else ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        raw = b"".join(self.token_bytes(i) for i in ids if not (skip_special and self.is_hidden(i)))
        text = raw.decode("utf-8", errors="replace")
        for old, new in self.text_replacements:
            text = text.replace(old, new)
        return text[1:] if self.strips_leading_space and text.startswith(" ") else text

    def stream(self, *, skip_special: bool = True) -> "StreamDecoder":
        """A decoder to push ids into, one at a time."""
        return StreamDecoder(self, skip_special=skip_special)


class StreamDecoder:
    """Decodes ids as they come, in whole characters: all it returns, joined, equals `decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._replacers = [_StreamReplacer(old, new) for old, new in tokenizer.text_replacements]
        self._strip = tokenizer.strips_leading_space

    def push(self, token_id: int) -> str:
        """Text that is complete after this token; "" while a character is not."""
        if self._skip_special and self._tokenizer.is_hidden(token_id):
            return ""
        return self._finish(self._utf8.decode(self._tokenizer.token_bytes(token_id)), final=False)

    def flush(self) -> str:
        """What is left at the end: half a character becomes U+FFFD. The decoder can then be used anew."""
        text = self._finish(self._utf8.decode(b"", final=True), final=True)
        self._utf8.reset()
        self._strip = self._tokenizer.strips_leading_space
        return text

    def _finish(self, text: str, *, final: bool) -> str:
        for replacer in self._replacers:
            text = replacer.push(text)
            if final:
                text += replacer.flush()
        if self._strip and text:
            self._strip = False
            text = text.removeprefix(" ")
        return text


class _StreamReplacer:
    """`str.replace` on a text that arrives in pieces: holds back an end that may be the start of `old`."""

    def __init__(self, old: str, new: str) -> None:
        self._old = old
        self._new = new
        self._held = ""

    def push(self, text: str) -> str:
        *done, tail = (self._held + text).split(self._old)
        keep = next((n for n in range(min(len(self._old) - 1, len(tail)), 0, -1) if self._old.startswith(tail[-n:])), 0)
        self._held = tail[len(tail) - keep :]
        return self._new.join([*done, tail[: len(tail) - keep]])

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def without_surrogates(text: str) -> str:
    """Text that UTF-8 can hold: paired surrogates become their character, lone ones U+FFFD."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
