"""Rules of quality by language and kind, each with a text that breaks it and one that does not."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq.data.characters import Shape, repeated_share, top_share
from qwq.data.documents import Document
from qwq.data.filters import quality
from qwq.data.filters_learned import HashedClassifier, LearnedQuality, noise
from qwq.data.harm import Harm, harm_model, listed, toxicity
from qwq.data.language import Identify, ask_model, language_of, lid_model
from qwq.errors import QwqError

RANDOM = random.Random(5)
NOUNS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ner", "sol") for b in ("bel", "dor", "sun", "tar", "wick")]
ENGLISH = "The committee said on Friday that the new bridge will be open to all of the public by the end of the year."
HAN = [chr(c) for c in range(0x4E00, 0x5000)]


def english(words):
    return " ".join(RANDOM.choice(["the", "of", "and", *NOUNS]) for _ in range(words)) + "."


def web(text, language="en"):
    return Document(text, "s", language=language, kind="web", meta={"extractor": "trafilatura"})


words = st.text("ab ", max_size=60)


@given(st.text(max_size=200))
def test_words_and_lines_are_those_of_python(text):
    """Arrays give the same words, lines and counts as str methods."""
    found = Shape(text)
    spaced = "".join("\n" if c == "\n" else " " if c.isspace() else c for c in text)
    assert [text[a:b] for a, b in zip(*found.words, strict=True)] == spaced.split()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    assert found.lines == lines
    assert found.visible == len("".join(spaced.split()))


@given(words, st.integers(1, 4))
def test_repetition_is_that_of_a_plain_count(text, n):
    """Gopher's duplicate n-grams and most frequent n-gram, counted word by word."""
    tokens = text.split()
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    covered, seen = set(), set()
    for i, gram in enumerate(grams):
        covered |= set(range(i, i + n)) if gram in seen else set()
        seen.add(gram)
    found = Shape(text)
    lengths = found.words[1] - found.words[0]
    total = max(1, sum(map(len, tokens)))
    assert repeated_share(found.word_hashes, lengths, n) == pytest.approx(sum(len(tokens[i]) for i in covered) / total)
    top = max((grams.count(gram), sum(map(len, gram))) for gram in grams) if grams else (0, 0)
    best = {grams.count(gram) * sum(map(len, gram)) / total for gram in grams if grams.count(gram) == top[0] > 1}
    assert top_share(found.word_hashes, lengths, n) in [pytest.approx(value) for value in best or {0.0}]


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        (english(200), "en", None),
        ("\n".join([english(12)] * 2 + [english(12) for _ in range(9)]), "en", None),
        (f"{ENGLISH} {' '.join(['buy the sun now'] * 40)}", "en", "top_ngram"),
        (" ".join([english(40)] * 4), "en", "repeated_ngrams"),
        ("".join("，".join("".join(RANDOM.choices(HAN, k=12)) for _ in range(3)) + "。" for _ in range(8)), "zh", None),
        (("".join(RANDOM.sample(HAN, 30)) + "。") * 8, "zh", "repeated_ngrams"),
    ],
)
def test_repetition_within_a_text(text, language, reason):
    """By words in English, by characters in Chinese."""
    assert quality(Document(text, "s", language=language)) == reason


def test_a_menu_of_a_web_page_goes_and_an_article_stays():
    """FineWeb's rules hold for what was extracted from pages, and for nothing else."""
    article = "\n".join(english(25) for _ in range(8))
    menu = "\n".join(f"The {a} of {b}" for a in NOUNS[:6] for b in NOUNS[6:12])
    short = "\n".join(f"See {a} of the sun." for a in NOUNS) + "\n" + english(20)
    assert [quality(web(text)) for text in (article, menu, short)] == [None, "no_end_punctuation", "short_lines"]
    assert quality(Document(menu, "s", language="en")) is None
    assert (
        quality(
            web(
                "\n".join(
                    ["首页新闻体育财经", "娱乐科技汽车房产", "教育健康旅游军事", "招聘关于我们联系", "城市天气"] * 2
                ),
                "zh",
            )
        )
        is not None
    )


def test_verse_has_rules_of_its_own():
    """Short lines, refrains and capitals are verse, whether the reader knew it or not; four letters are no poem."""
    poem = "床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。"
    song = "\n".join(
        ["Row, row, row your boat,", "Gently down the stream,", "Merrily, merrily, merrily,", "Life is but a dream."]
        * 2
    )
    assert quality(Document(poem, "s", language="zh")) is None
    assert quality(Document(poem, "s", language="zh", kind="verse")) is None
    assert quality(Document(song, "s", language="en")) is None
    assert quality(Document("春\n夏\n秋\n冬", "s", language="zh", kind="verse")) == "too_short"
    assert (
        quality(Document("\n".join(["la la la la la la la la"] * 30), "s", language="en", kind="verse"))
        == "repeated_lines"
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Save the file\n保存文件", None),
        ("Save the file\nSave the file", "untranslated"),
        ("Save the file\nLagre filen", "wrong_language"),
        ("Save the file\n", "one_sided_pair"),
        ("%s\n%s：", "too_short"),
        (f"{ENGLISH} {ENGLISH}\n保存", "length_ratio"),
    ],
)
def test_pairs_of_translations(text, reason):
    """Two lines that can be translations of each other."""
    document = Document(text, "s", language="en-zh", kind="parallel", meta={"languages": ["en", "zh"]})
    assert quality(document) == reason


@pytest.mark.parametrize("name", ["api_pb2.py", "app.min.js", "types.pb.go"])
def test_generated_code_is_known_by_its_name(name):
    """Where no comment says it."""
    code = "def add(left, right):\n    return left + right   # a comment of some length\n"
    assert quality(Document(code, "s", language="code", kind="code", meta={"file": name})) == "generated"
    assert quality(Document(code, "s", language="code", kind="code", meta={"file": "api.py"})) is None


def test_languages_beyond_the_two_are_told_apart_by_the_model():
    """lid.176 where it can be had; Chinese and English, classical Chinese too, need no model."""
    path, why = lid_model()
    if not path:
        pytest.skip(f"lid.176.ftz cannot be had here: {why}")
    texts = {
        "de": "Der Ausschuss teilte am Freitag mit, dass die neue Brücke bis Ende des Jahres geöffnet wird. " * 2,
        "es": "El comité dijo el viernes que el nuevo puente estará abierto al público antes de fin de año. " * 2,
        "ja": "今日は友達と一緒に東京の公園へ行きました。とても楽しかったです。",
        "ru": "Съешь же ещё этих мягких французских булок, да выпей чаю.",
        "zh": "学而时习之，不亦说乎？",
        "en": f"{ENGLISH} {ENGLISH}",
    }
    assert {language: language_of(text, path) for language, text in texts.items()} == {k: k for k in texts}
    assert ask_model(path, "学而时习之")[0] == "ja"  # why the script is asked first
    document = Document(texts["de"], "s")
    assert Identify(path)(document) is None
    assert document.language == "de"
    pair = Document("Open\n打开", "s", language="en-zh", kind="parallel")
    assert (Identify(path)(pair), pair.language) == (None, "en-zh")


def test_a_classifier_learns_what_it_is_shown(tmp_path):
    """Clean against damaged text, on texts it has not seen; the same after saving; a low score is a reason to go."""
    pytest.importorskip("sklearn", reason="training needs scikit-learn: pip install 'qwq[data]'")
    sentences = [english(60) + " " + ENGLISH for _ in range(80)]
    damaged = [noise(text, random.Random(i)) for i, text in enumerate(sentences)]
    trained = HashedClassifier.train(sentences[:60] + damaged[:60], [1] * 60 + [0] * 60)
    good = [trained.scores(text).mean() for text in sentences[60:]]
    bad = [trained.scores(text).mean() for text in damaged[60:]]
    assert np.mean(good) > np.mean(bad) + 0.3
    trained.save(tmp_path / "m.npz")
    stored = HashedClassifier.load(tmp_path / "m.npz")
    assert stored.scores(sentences[0]) == pytest.approx(trained.scores(sentences[0]), abs=1e-3)
    judge = LearnedQuality(str(tmp_path / "m.npz"), float(np.mean(good) + np.mean(bad)) / 2)
    kept, gone = Document(sentences[70], "s", language="en"), Document(damaged[70], "s", language="en")
    assert (judge(kept), judge(gone)) == (None, "low_quality")
    assert kept.meta["quality"] > gone.meta["quality"]
    assert sum(judge.tally.values()) == 2
    assert judge(Document("x", "s", language="code")) is None
    assert trained.scores("").shape == (1,)


def test_harm_is_a_signal_and_drops_nothing(tmp_path, monkeypatch):
    """Listed words by kind, and the probability of a classifier trained on the sets of the data folder."""
    pytest.importorskip("sklearn", reason="training needs scikit-learn: pip install 'qwq[data]'")
    monkeypatch.setenv("QWQ_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("qwq.data.harm.clean_prose", lambda: iter(()))
    assert harm_model(tmp_path) == ""
    (tmp_path / "toxicity").mkdir()
    kind, rude = [f"what a lovely {noun} today" for noun in NOUNS], [f"you are a stupid {noun}" for noun in NOUNS]
    rows = [f"{i},{int(i % 2 == 0)},{(rude if i % 2 == 0 else kind)[i // 2]}" for i in range(2 * len(NOUNS))]
    (tmp_path / "toxicity" / "zh_cold_train.csv").write_text(",label,TEXT\n" + "\n".join(rows) + "\n")
    path = harm_model(tmp_path)
    stage = Harm(path)
    bad, good = (
        Document(text, "s", language="en") for text in ("you are a stupid idiot", "what a lovely bridge today")
    )
    assert (stage(bad), stage(good)) == (None, None)
    assert bad.meta["harm"]["words"] == {"insult": 1}
    assert bad.meta["harm"]["score"] > 0.5 > good.meta["harm"]["score"]
    assert "words" not in good.meta["harm"]
    plain = Document("ordinary", "s", language="en")
    assert (Harm()(plain), plain.meta) == (None, {})
    (tmp_path / "toxicity" / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(QwqError, match="no columns TEXT, label or tweet, class; it has a, b"):
        toxicity(tmp_path / "toxicity" / "other.csv")


def test_tweets_are_split_by_their_hash(tmp_path):
    """A tenth is for evaluation, the same tenth every time, and never trained on."""
    (tmp_path / "en.csv").write_text("class,tweet\n" + "".join(f"{i % 3},tweet {i}\n" for i in range(500)))
    train, dev = toxicity(tmp_path / "en.csv"), toxicity(tmp_path / "en.csv", dev=True)
    assert len(train) + len(dev) == 500
    assert not {text for text, _ in train} & {text for text, _ in dev}
    assert 30 <= len(dev) <= 75


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A conspicuous heroine in a chinking suit", {}),
        ("Heroin, HEROIN and cocaine", {"drugs and weapons": 3}),
        ("about self-harm, not the self or harm", {"self-harm": 1}),
        ("他妈的，妈的", {"insult": 2}),
        ("你这个傻B", {"insult": 1}),
        ("自然而然地自由", {}),
        ("", {}),
    ],
)
def test_listed_words_count_whole_and_once(text, found):
    """A Latin word inside another is none, nor is a Chinese one inside a longer listed one."""
    assert listed(text) == found
