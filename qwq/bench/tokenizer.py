"""`qwq bench tokenizer`: how long training takes, bytes a token beside published vocabularies, and encoding speed."""

import base64
import json
import os
import statistics
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from qwq.bench import common
from qwq.bench.data import LANGUAGES, prepare
from qwq.data import read_documents
from qwq.data.documents import hash_of
from qwq.data.fetch import Package, fetch
from qwq.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece
from qwq.tokenizer.byte_level import SPLITS

VOCAB_SIZE = 32_768
HELDOUT_BYTES = 2_000_000  # a language
DASHSCOPE = Package("pypi", "dashscope", "2.0.2", "0602d1800f7433bdb7953560986eaf5146454ed3988636c0a91963ba24e74258")
LITELLM = Package(  # for the two files of ranks that tiktoken would fetch
    "pypi", "litellm", "1.109.1", "1c8b4dd671fa0cd0850aa751678704ff77e595fb1e6085b2dc3be39ee19bdaaf",
    platform="cp310-abi3-manylinux_2_28_x86_64",
)  # fmt: skip
RANKS = "litellm/litellm_core_utils/tokenizers/"
Encode = Callable[[list[str]], list[list[int]]]


def run(json_path: common.JsonPath = None, *, rounds: int = 5, folder: Path = Path("bench-data")) -> dict:
    """Train on 15 of 16 documents of the corpus of `qwq bench data`, measure on the others."""
    prepare(folder)
    training, heldout = split(folder)
    own, seconds = train(training, folder / "tokenizer")
    qwen_file = _member(DASHSCOPE, "dashscope/resources/qwen.tiktoken", folder / "qwen" / "qwen.tiktoken")
    qwen = load_tokenizer(qwen_file.parent)
    vocabularies = {"Qwen (dashscope)": qwen.encode_batch} | openai(folder / "openai")
    rows = []
    for language, texts in heldout.items():
        ours = bytes_per_token(own.encode_batch, texts)
        for name, encode in vocabularies.items():
            theirs = bytes_per_token(encode, texts)
            setting = f"held-out text; {own.vocab_size:,} ids here, trained on this corpus"
            ratio = ours / theirs
            case = f"bytes-per-token-{language}"
            rows.append(common.Row(case, name, setting, ours, theirs, "bytes/token", ratio, (ratio, ratio), None))
    texts = [text for of_language in heldout.values() for text in of_language]
    peers = {f"tiktoken, {n} threads": _tiktoken(qwen_file, n) for n in (1, 2, 4)}
    peers["tokenizers, its own threads"] = _plain(qwen, folder / "qwen-plain")
    rates = speeds(qwen.encode_batch, peers, texts, rounds)
    for peer in ("tiktoken", "tokenizers"):
        best = max((name for name in peers if name.startswith(peer)), key=lambda name: statistics.median(rates[name]))
        rows.append(
            common.compare("encode-qwen", rates["ours"], rates[best], peer=peer, peer_setting=best, unit="MB/s")
        )
    more = {"training": seconds, "sweep": rates, "heldout_bytes": {k: sum(map(_size, v)) for k, v in heldout.items()}}
    found = common.versions("tiktoken", "tokenizers", "sentencepiece")
    return common.report("tokenizer", rows, common.limits(), found, json_path, **more)


def split(folder: Path) -> tuple[list[str], dict[str, list[str]]]:
    """(training texts, held-out texts by language, HELDOUT_BYTES each at most): one document of 16, by hash."""
    training: list[str] = []
    heldout: dict[str, list[str]] = {}
    for language in LANGUAGES:
        room = HELDOUT_BYTES
        for path in sorted((folder / "raw").glob(f"{language}-*.jsonl")):
            for document in read_documents(path):
                if hash_of(document.text)[0] != "0":
                    training.append(document.text)
                elif (size := _size(document.text)) <= room:
                    heldout.setdefault(language, []).append(document.text)
                    room -= size
    return training, heldout


def train(texts: list[str], out: Path, vocab_size: int = VOCAB_SIZE) -> tuple[Tokenizer, dict]:
    """The trained tokenizer and how long that took; once."""
    if not (out / "training.json").is_file():
        start = time.perf_counter()
        train_sentencepiece(texts, vocab_size, out)
        took = {
            "seconds": round(time.perf_counter() - start, 1),
            "bytes": sum(map(_size, texts)),
            "vocab_size": vocab_size,
        }
        (out / "training.json").write_text(json.dumps(took) + "\n")
    return load_tokenizer(out), json.loads((out / "training.json").read_text())


def openai(folder: Path) -> dict[str, Encode]:
    """cl100k and o200k by tiktoken, whose ranks are in the wheel of litellm."""
    with zipfile.ZipFile(fetch(LITELLM)) as wheel:
        for member in (name for name in wheel.namelist() if name.startswith(RANKS) and "." not in name[len(RANKS) :]):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / member.removeprefix(RANKS)).write_bytes(wheel.read(member))
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    import tiktoken

    return {name: tiktoken.get_encoding(name).encode_ordinary_batch for name in ("cl100k_base", "o200k_base")}


def bytes_per_token(encode: Encode, texts: list[str]) -> float:
    """Bytes of UTF-8 a token; larger is better."""
    return sum(map(_size, texts)) / sum(map(len, encode(texts)))


def speeds(ours: Encode, peers: dict[str, Encode], texts: list[str], rounds: int) -> dict[str, list[float]]:
    """MB/s of whole batches, interleaved."""
    megabytes = sum(map(_size, texts)) / 1e6

    def timed(encode: Encode) -> Callable[[], float]:
        return lambda: common.rate(lambda: encode(texts), megabytes)

    return common.interleave({name: timed(encode) for name, encode in ({"ours": ours} | peers).items()}, rounds)


def _plain(tokenizer: Tokenizer, folder: Path) -> Encode:
    """The same vocabulary in the library `tokenizers` alone."""
    import tokenizers

    tokenizer.save(folder)
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda texts: [found.ids for found in inner.encode_batch_fast(texts, add_special_tokens=False)]


def _tiktoken(path: Path, threads: int) -> Encode:
    import tiktoken

    lines = (line.split() for line in path.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = tiktoken.Encoding("qwen", pat_str=SPLITS["qwen2"][0], mergeable_ranks=ranks, special_tokens={})
    return lambda texts: encoding.encode_ordinary_batch(texts, num_threads=threads)


def _member(package: Package, name: str, target: Path) -> Path:
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(fetch(package)) as wheel:
            target.write_bytes(wheel.read(name))
    return target


def _size(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
