"""Signals of harmful text, never a verdict: a classifier's probability and listed words, in `meta["harm"]`.

The classifier is trained on the toxicity sets of QWQ_DATA_DIR (COLD, arXiv 2201.06025; Davidson et al. 2017, arXiv
1703.04009), where those are; it ships with nothing. A word of a list can stand in a dictionary, a court ruling or a
health page as well as in an insult: what to do with a signal is for whoever trains on the documents.
"""

import contextlib
import csv
import functools
import hashlib
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from qwq.checkpoint.builtin import cache_dir
from qwq.data.documents import Document
from qwq.data.filters_learned import HashedClassifier, clean_prose, load, windows
from qwq.data.readers_files import text_lines
from qwq.errors import QwqError
from qwq.kernels import minhash

WORDS = {
    "insult": "idiot idiots moron morons scumbag scumbags dumbass asshole assholes bitch bitches bastard bastards whore"
    " slut retard retards 傻逼 傻b 煞笔 沙比 脑残 智障 贱人 婊子 狗东西 人渣 废物 杂种 王八蛋 滚蛋 去死吧 他妈的 妈的",
    "slur": "nigger niggers faggot faggots chink chinks kike kikes spic spics wetback 黑鬼 棒子 支那 尼哥 死基佬",
    "sexual": "porn porno blowjob cumshot gangbang hentai milf xxx 色情 约炮 裸聊 成人视频 无码 强奸 口交 肛交 援交",
    "violence": "behead beheading massacre lynch lynching genocide 砍死 杀光 灭族 血洗 弄死 打死你 屠杀",
    "self-harm": "suicide self-harm 自杀 自残 割腕 轻生",
    "drugs and weapons": "cocaine heroin methamphetamine fentanyl 冰毒 海洛因 大麻 摇头丸 枪支 炸药 制毒",
    "fraud and gambling": "casino jackpot viagra cialis 赌场 博彩 时时彩 代开发票 刷单 办证 六合彩",
}
_KIND = {word: kind for kind, words in WORDS.items() for word in words.split()}
BITS = 18  # of a bitmap of hashes
DEV = 26  # of 256: tweets whose hash begins with less are for evaluation, a tenth


class Harm:
    """Sets `meta["harm"]` to {"score": highest of any 400 bytes, "words": {kind: number}}; drops nothing."""

    def __init__(self, model: str = "") -> None:
        self.model = model
        self.tally: Counter[str] = Counter()

    def __call__(self, document: Document) -> str | None:
        words = listed(document.text)
        harm: dict = {"words": dict(sorted(words.items()))} if words else {}
        self.tally.update(f"words: {kind}" for kind in words)
        if self.model and document.language in ("en", "zh"):
            score = float(load(self.model).scores(document.text).max())
            harm["score"] = round(score, 3)
            self.tally["score of 0.7 or more" if score >= 0.7 else "score below 0.7"] += 1
        if harm:
            document.meta["harm"] = harm
        return None


def listed(text: str) -> Counter[str]:
    """How many listed words of each kind are in a text; Latin ones as whole words."""
    # Few texts hold any of them, and that is told many times faster than by the expression.
    tokens, (words, bits) = minhash.tokens(text), _beginnings()
    found = {
        word
        for n in (1, 2)
        for hash in minhash.marked(tokens, n, bits, 64 - BITS).tolist()
        for word in words.get(hash, ())
    }
    if not found:
        return Counter()
    ways = (rf"\b{word}\b" if word.isascii() else word for word in sorted(found, key=len, reverse=True))
    return Counter(_KIND[word] for word in re.findall("|".join(ways), text.lower()))


@functools.cache
def _beginnings() -> tuple[dict[int, list[str]], np.ndarray]:
    """The listed words by the hash of their first two tokens, or of their only one; a bitmap of 2**BITS of these."""
    words, bits = defaultdict[int, list[str]](list), np.zeros(1 << BITS, np.uint8)
    for word in _KIND:
        tokens = minhash.tokens(word)
        words[int(minhash.windows(tokens, min(2, len(tokens)))[0])].append(word)
    bits[[value >> (64 - BITS) for value in words]] = 1
    return dict(words), np.packbits(bits, bitorder="little")


def harm_model(folder: Path | None) -> str:
    """Path of the classifier trained on FOLDER/toxicity, kept in the cache by what it was trained on; "" without it."""
    names = ("zh_cold_train.csv", "en_davidson_train.csv")
    files = [] if folder is None else [file for name in names if (file := folder / "toxicity" / name).is_file()]
    if not files:
        return ""
    stamp = hashlib.sha256(b"2" + b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
    path = cache_dir() / f"harm-{stamp}.npz"
    if not path.is_file():
        rows = [row for file in files for row in toxicity(file)]
        # Those are all short posts: edited prose, as examples of what is harmless, keeps it from being flagged as such.
        with contextlib.suppress(QwqError):  # where its packages cannot be had, the classifier does without
            rows += [(window, 0) for text in clean_prose() for window in windows(text, 8)]
        HashedClassifier.train([text for text, _ in rows], [label for _, label in rows]).save(path)
    return str(path)


def toxicity(path: Path, *, dev: bool = False) -> list[tuple[str, int]]:
    """(text, 1 if offensive) of COLD (`TEXT`, `label`) or Davidson (`tweet`, `class`: train or dev by hash)."""
    rows = csv.DictReader(text_lines(path))
    if "TEXT" in (rows.fieldnames or ()):
        return [(row["TEXT"], int(row["label"])) for row in rows]
    if "tweet" not in (rows.fieldnames or ()):
        raise QwqError(f"{path}: no columns TEXT, label or tweet, class; it has {', '.join(rows.fieldnames or ())}")
    split = [(row["tweet"], int(row["class"] != "2")) for row in rows]
    return [row for row in split if (hashlib.sha256(row[0].encode()).digest()[0] < DEV) == dev]
