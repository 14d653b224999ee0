"""Words replaced, inserted, deleted: by seed, at the rate that was set, with whole words in Chinese too."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq.data.augment import (
    OPERATIONS,
    WORDNET,
    SameCategory,
    WordNet,
    WordNoise,
    augment,
    both,
    by_words,
    reworded,
    split_words,
)
from qwq.data.documents import Document, DocumentWriter, hash_of, read_documents
from qwq.errors import QwqError, UsageError

pytest.importorskip("jieba", reason="jieba is not installed: pip install 'qwq[data]'")
CHINESE = "我们在北京大学学习自然语言处理，天气很好。他买了苹果和书，然后去公园散步。明天去上海开会，讨论经济问题。"
ENGLISH = "The committee decided yesterday to postpone the meeting, and nobody asked why the large house stood empty."


def other_word(word):
    return [f"{word}x"] if word.isascii() else ["某某"]


@given(st.text(st.sampled_from("abc DE'’-_1２,.\n中文字。苹果é😀"), max_size=60))
@settings(deadline=None)
def test_pieces_joined_are_the_text(text):
    """Nothing is lost by cutting into words, and words begin with a letter."""
    pieces, places = split_words(text)
    assert "".join(pieces) == text
    assert all(pieces[place][0].isalpha() for place in places)


def test_chinese_words_are_not_cut_inside():
    """jieba's words: a university is one of them."""
    pieces, _ = split_words(CHINESE)
    assert {"北京大学", "自然语言", "苹果", "经济"} <= set(pieces)


@pytest.mark.parametrize("text", [ENGLISH * 5, CHINESE * 5], ids=["en", "zh"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_the_rate_is_the_share_of_words(text, rate):
    """Each operation touches round(rate * words) words, no more and no less."""
    words = len(split_words(text)[1])
    many = round(rate * words)
    for operation in OPERATIONS:
        other = WordNoise(lambda word: ["Zz" if word.isascii() else "〇〇"], rate, 3, (operation,))(text)
        new = other.count("Zz") + other.count("zz") + other.count("〇〇")
        assert new == (0 if operation == "delete" else many)
        if operation == "delete":
            assert len(split_words(other)[1]) <= words - many + 2 * (text == CHINESE * 5)
            assert (other == text) == (many == 0)


def test_the_seed_decides_and_nothing_else():
    """The same seed gives the same text; another seed, or another text, draws anew."""
    noise = WordNoise(other_word, 0.3, seed=1)
    assert noise(ENGLISH) == noise(ENGLISH) == WordNoise(other_word, 0.3, seed=1)(ENGLISH)
    assert len({WordNoise(other_word, 0.3, seed=s)(CHINESE) for s in range(5)}) == 5


def test_case_spaces_and_marks_stay():
    """A capital stays a capital, a deleted word takes one space along, and paragraphs keep their lines."""
    text = "Big DOGS ran.\n\nThey ran, and ran."
    assert WordNoise(lambda w: ["cat"] if w in ("big", "dogs") else [], 1.0, operations=("replace",))(text) == (
        "Cat CAT ran.\n\nThey ran, and ran."
    )
    short = WordNoise(other_word, 0.3, operations=("delete",))(text)
    assert "  " not in short
    assert short.count("\n\n") == 1


def test_same_category_keeps_tag_and_length():
    """A verb of two characters comes for a verb of two characters, never a function word for another."""
    category = SameCategory([CHINESE, ENGLISH])
    assert set(category("学习")) == {"处理", "开会", "讨论"}
    assert "苹果" in category("公园")
    assert category("the") == []
    assert category("decided") == ["asked"]


@pytest.mark.skipif(not (WORDNET / "index.noun").is_file(), reason="WordNet is not installed: apt install wordnet-base")
def test_wordnet_gives_synonyms_of_the_commonest_sense():
    """And nothing for function words and inflected forms."""
    wordnet = WordNet()
    assert "large" in wordnet("big")
    assert "purchase" in wordnet("buy")
    assert wordnet("the") == wordnet("buys") == []
    assert both(wordnet, lambda word: ["else"])("buys") == ["else"]


def test_without_wordnet_there_is_one_line(tmp_path):
    """What to install."""
    with pytest.raises(QwqError, match="apt install wordnet-base"):
        WordNet(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rate": 1.5}, "must be 0 to 1, not 1.5"),
        ({"operations": ("swap",)}, "no operation 'swap'; known are replace, insert, delete"),
    ],
)
def test_wrong_settings_are_named(options, said):
    """Not silently no augmentation."""
    with pytest.raises(UsageError, match=said):
        WordNoise(other_word, **options)


def documents():
    chat = [{"role": "user", "content": "What is a house?"}, {"role": "assistant", "content": "A building."}]
    rows = [
        Document(ENGLISH + "\n\n" + ENGLISH.upper(), "a", "CC0", "en"),
        Document("What is a house?\nA building.", "b", "CC0", "en", "dialogue", messages=chat),
        Document("x = 1\n" * 20, "c", "CC0", "code", "code"),
        Document(CHINESE, "d", "CC0", "zh"),
    ]
    for row in rows:
        row.hash = hash_of(row.text)
    return rows


def test_a_copy_says_how_and_of_what():
    """Code and dialogue have none; lines stay lines; licence and source are the original's."""
    rows = documents()
    copies = list(reworded(rows, by_words(WordNoise(other_word, 0.5)), "words"))
    assert [c.meta["of"] for c in copies] == [rows[0].hash, rows[3].hash]
    assert all(c.meta["augmented"] == "words" and c.hash == hash_of(c.text) for c in copies)
    assert [(c.source, c.license) for c in copies] == [("a", "CC0"), ("d", "CC0")]
    assert copies[0].text.split("\n")[1] == ""


def test_a_copy_needs_half_of_its_text_reworded():
    """Where the round trip failed for most paragraphs, the document has no copy; else what failed stays as it was."""
    text = "long enough a paragraph\nshort"
    row = Document(text, "s", language="en", hash=hash_of(text))
    assert list(reworded([row], lambda texts: [None, "other"], "t")) == []
    (copy,) = reworded([row], lambda texts: ["another paragraph", None], "t")
    assert copy.text == "another paragraph\nshort"


def test_an_augmented_corpus_has_the_originals_and_keeps_the_held_out_text_out(tmp_path):
    """The new folder is a corpus like the old one; the report counts copies by way."""
    with DocumentWriter(tmp_path / "corpus" / "documents") as writer:
        for row in documents():
            writer.write(row)
    with DocumentWriter(tmp_path / "corpus" / "heldout" / "en.jsonl.zst") as writer:
        writer.write(Document("held out", "s", language="en"))
    noise = by_words(WordNoise(other_word, 0.3))
    report = augment(tmp_path / "corpus", tmp_path / "out", {"words-en": ("en", noise), "words-zh": ("zh", noise)})
    kept = list(read_documents(tmp_path / "out"))
    assert [d.text for d in kept[:4]] == [d.text for d in documents()]
    assert [d.meta["augmented"] for d in kept[4:]] == ["words-en", "words-zh"]
    assert report["augmentation"] == {"originals": 4, "words-en": 1, "words-zh": 1}
    assert [d.text for d in read_documents(tmp_path / "out" / "heldout" / "en.jsonl.zst")] == ["held out"]
    with pytest.raises(UsageError, match="exists"):
        augment(tmp_path / "corpus", tmp_path / "out", {})
