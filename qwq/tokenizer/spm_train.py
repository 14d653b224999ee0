"""Training of a SentencePiece vocabulary."""

import io
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from qwq.errors import QwqError, UsageError
from qwq.tokenizer.base import without_surrogates
from qwq.tokenizer.fast import FastTokenizer
from qwq.tokenizer.spm_model import ESCAPE, ESCAPES, SHOWN_TOKENS, SPACE, tokenizer_from_sentencepiece
from qwq.tokenizer.spm_proto import without_file_names

# Private use; marks in training text where no piece may cross. At the end of a line it also keeps SentencePiece from
# dropping the line end.
_BORDER = "\U000f2582"
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MAX_SEGMENT = 1000  # characters
_SAMPLE_CHARACTERS = 25_000_000


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    out: Path,
    *,
    character_coverage: float = 0.9995,
    sample_characters: int = _SAMPLE_CHARACTERS,
    seed: int = 0,
) -> FastTokenizer:
    """Train a byte-pair vocabulary of exactly `vocab_size` ids, save it into the folder `out` and return it.

    Byte fallback spells what the vocabulary lacks, so any text survives encode and decode. Digits stand alone, spaces
    are kept as they are, runs of them (indentation) and line ends have pieces of their own. The rarest characters are
    left to the bytes: `character_coverage` of the text is covered by single characters, or less where those would
    fill more than a third of the vocabulary. `sample_characters` bounds what is trained on (a random choice of lines).

    Raises UsageError for a `vocab_size` that has no room for bytes and control tokens, QwqError for an empty corpus or
    one too small for `vocab_size`.
    """
    fixed = 1 + len(CONTROL_TOKENS) + len(SHOWN_TOKENS) + 256
    if vocab_size < fixed + 64:
        raise UsageError(
            f"--vocab-size {vocab_size} is too small: {fixed} ids are bytes and control tokens; take 512 or more"
        )
    segments = _sample(texts, sample_characters, random.Random(seed))
    alphabet = _alphabet(segments, character_coverage, (vocab_size - fixed) // 3)
    if not alphabet:
        raise QwqError("the corpus has no text to train a tokenizer on; give documents that are not empty")
    rare = re.compile(f"[^{re.escape(''.join(sorted(alphabet)))}]+")
    with tempfile.TemporaryDirectory() as folder:
        normalize, denormalize = _write_escape_rules(Path(folder))
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(rare.sub(_BORDER, segment) + _BORDER for segment in segments),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                character_coverage=1.0,  # of what `rare` has left
                byte_fallback=True,
                split_digits=True,
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                pretokenization_delimiter=_BORDER,
                control_symbols=[*CONTROL_TOKENS, *SHOWN_TOKENS],
                unk_id=0,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                max_sentence_length=1 << 20,
                minloglevel=2,
                normalization_rule_tsv=str(normalize),
                denormalization_rule_tsv=str(denormalize),
            )
        except RuntimeError as error:
            raise QwqError(_training_error(str(error), vocab_size)) from error
    tokenizer = tokenizer_from_sentencepiece(without_file_names(model.getvalue()), "the trained model")
    tokenizer.save(out)
    return tokenizer


def _sample(texts: Iterable[str], characters: int, choice: random.Random) -> list[str]:
    """Lines of `texts`, cut where too long; when there are more than `characters`, each kept half is a random one."""
    kept: list[str] = []
    total, share = 0, 1.0
    for text in texts:
        for segment in _segments(text):
            if share < 1.0 and choice.random() >= share:
                continue
            kept.append(segment)
            total += len(segment)
            if total > characters and len(kept) > 1:
                share /= 2
                kept = [s for s in kept if choice.random() < 0.5]
                total = sum(map(len, kept))
    return kept


def _segments(text: str) -> Iterator[str]:
    """`text` in lines, with their line ends."""
    for line in re.findall("[^\n]*\n+|[^\n]+", without_surrogates(text)):
        for start in range(0, len(line), _MAX_SEGMENT):
            yield line[start : start + _MAX_SEGMENT]


def _alphabet(segments: list[str], coverage: float, most: int) -> set[str]:
    """The commonest characters that make up `coverage` of the text, at most `most` of them."""
    counts = Counter[str]()
    for segment in segments:
        counts.update(segment)
    for never in (SPACE, ESCAPE, _BORDER, "\0"):
        counts.pop(never, None)
    alphabet: set[str] = set()
    covered = 0
    for character, count in counts.most_common(most):
        if covered >= coverage * counts.total():
            break
        alphabet.add(character)
        covered += count
    return alphabet


def _write_escape_rules(folder: Path) -> tuple[Path, Path]:
    """The escaping as SentencePiece's own rules, so that tokenizer.model alone round-trips U+2581 as well."""

    def line(old: str, new: str) -> str:
        return f"{' '.join(f'{ord(c):X}' for c in old)}\t{' '.join(f'{ord(c):X}' for c in new)}\n"

    normalize, denormalize = folder / "normalize.tsv", folder / "denormalize.tsv"
    normalize.write_text("".join(line(old, new) for old, new in ESCAPES))
    denormalize.write_text("".join(line(new, old) for old, new in ESCAPES))
    return normalize, denormalize


def _training_error(message: str, vocab_size: int) -> str:
    too_high = re.search(r"value <= (\d+)", message)
    if too_high:
        return (
            f"the corpus is too small for --vocab-size {vocab_size}: it makes at most {too_high[1]} pieces; "
            "take a smaller vocabulary or more text"
        )
    return f"SentencePiece could not train: {' '.join(message.split())}"
