"""Translation by an engine that is at hand, and back-translation (Sennrich et al., arXiv 1511.06709) of texts with it.

A `Translate` takes texts and returns as many. `back_translation` puts two of them together: what comes back is another
wording, or None where the way there and back lost the meaning.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwq.errors import QwqError, UsageError

Translate = Callable[[list[str]], list[str]]
_NUMBER = re.compile(r"\d+")
_GAP = "\n\n"
BATCH = 16  # texts that a model translates at once
SIMILARITY = 0.55  # chrF; two sentences that have nothing to do with each other reach 0.47 at most (docs/log.md)


class Apertium:
    """A direction of the rule-based engine apertium, such as `eng-spa` (Debian: apt install apertium-eng-spa).

    `QwqError` when it is not installed or does not know the direction.
    """

    def __init__(self, direction: str) -> None:
        self.direction = direction
        if not self(["yes"])[0]:
            raise QwqError(f"apertium {direction} translates nothing")

    def __call__(self, texts: list[str]) -> list[str]:
        """Line by line: line ends stay where they are, and no sentence goes over one."""
        lines = [line for text in texts for line in text.split("\n")]
        given = [line for line in lines if line.strip()]
        command = ["apertium", "-u", self.direction]
        try:
            done = subprocess.run(command, input=_GAP.join(given).encode(), capture_output=True)
        except OSError as error:
            reason = error.strerror or error
            raise QwqError(f"apertium cannot be run ({reason}): apt install apertium-eng-spa") from None
        if done.returncode:
            said = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[0]
            raise QwqError(f"apertium {self.direction}: {said}; apertium -l lists the directions that are installed")
        answers = done.stdout.decode("utf-8", "replace").split(_GAP)
        if len(answers) != len(given):
            raise QwqError(f"apertium {self.direction} gave {len(answers)} lines for {len(given)}")
        answer = iter(answers)
        whole = iter([next(answer).strip() if line.strip() else line for line in lines])
        return ["\n".join(next(whole) for _ in text.split("\n")) for text in texts]


class Seq2Seq:
    """A translation model of `transformers` (Marian, NLLB, M2M100, T5 ...) in a local folder.

    source, target: language codes as the tokenizer has them, for models of many languages.
    """

    def __init__(self, folder: str, source: str = "", target: str = "") -> None:
        import transformers

        self.tokenizer = _tokenizer(folder, source)
        self.model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True).eval()
        self.first = {"forced_bos_token_id": self.tokenizer.convert_tokens_to_ids(target)} if target else {}

    def __call__(self, texts: list[str]) -> list[str]:
        """The search that the model's generation settings say; at most the positions that the model has."""
        import torch

        answers: dict[int, str] = {}
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        most = getattr(self.model.config, "max_position_embeddings", None) or 512
        for start in range(0, len(order), BATCH):
            given = [texts[i] for i in order[start : start + BATCH]]
            rows = self.tokenizer(given, return_tensors="pt", padding=True, truncation=True, max_length=most)
            with torch.inference_mode():
                ids = self.model.generate(**rows, **self.first, max_length=most, max_new_tokens=None)
            answers |= zip(order[start:], self.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=False)
        return [answers[i] for i in range(len(texts))]


class CTranslate2:
    """A model that `ct2-transformers-converter` wrote, with the tokenizer files of the original beside it."""

    def __init__(self, folder: str, source: str = "", target: str = "") -> None:
        import ctranslate2

        self.tokenizer, self.model = _tokenizer(folder, source), ctranslate2.Translator(folder)
        self.target = [target] if target else []

    def __call__(self, texts: list[str]) -> list[str]:
        """Beam search of width 2, CTranslate2's default."""
        tokenizer = self.tokenizer
        rows = [tokenizer.convert_ids_to_tokens(tokenizer.encode(text)) for text in texts]
        prefix = [self.target] * len(rows) if self.target else None
        found = self.model.translate_batch(rows, target_prefix=prefix, max_batch_size=1024, batch_type="tokens")
        ids = [tokenizer.convert_tokens_to_ids(one.hypotheses[0][len(self.target) :]) for one in found]
        return tokenizer.batch_decode(ids, skip_special_tokens=True)


def _tokenizer(folder: str, source: str) -> Any:
    import transformers

    options = {"src_lang": source} if source else {}
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)


def open_translator(name: str) -> Translate:
    """`apertium:eng-spa`, or a folder with a model; `FOLDER:source:target` for a model of many languages."""
    if name.startswith("apertium:"):
        return Apertium(name.removeprefix("apertium:"))
    folder, *codes = name.split(":")
    if len(codes) not in (0, 2) or not Path(folder).is_dir():
        raise UsageError(f"no translator {name!r}: give apertium:eng-spa, FOLDER or FOLDER:source:target")
    try:
        return CTranslate2(folder, *codes) if (Path(folder) / "model.bin").is_file() else Seq2Seq(folder, *codes)
    except ImportError as error:
        raise QwqError(f"the translation model in {folder} needs a package: pip install {error.name}") from None


def chrf(text: str, reference: str, *, order: int = 6, beta: float = 2.0) -> float:
    """chrF (Popovic 2015), 0 to 1: agreement of the character n-grams of two texts, spaces aside."""
    text, reference = ("".join(t.split()) for t in (text, reference))
    scores = []
    for n in range(1, order + 1):
        ours, theirs = (Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (text, reference))
        if not ours or not theirs:
            continue
        both = (ours & theirs).total()
        scores.append((both / ours.total(), both / theirs.total()))
    if not scores:
        return 0.0
    precision, recall = (sum(column) / len(scores) for column in zip(*scores, strict=True))
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall) if precision + recall else 0.0


def back_translation(
    there: Translate,
    back: Translate,
    *,
    similarity: Callable[[str, str], float] = chrf,
    threshold: float = SIMILARITY,
) -> Callable[[list[str]], list[str | None]]:
    """A function from texts to their other wordings; None where the round trip lost the meaning or changed nothing.

    Lost: `similarity(wording, text)` is below the threshold, or the numbers are not those of the text.
    """

    def reword(texts: list[str]) -> list[str | None]:
        wordings = back(there(texts))
        kept = []
        for text, wording in zip(texts, wordings, strict=True):
            same = wording.split() == text.split()
            numbers = Counter(_NUMBER.findall(wording)) == Counter(_NUMBER.findall(text))
            kept.append(None if same or not numbers or similarity(wording, text) < threshold else wording)
        return kept

    return reword
