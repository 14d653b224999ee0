"""Translation engines behind one callable, and which round trips are kept."""

import json
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq.data.translate import Apertium, CTranslate2, Seq2Seq, back_translation, chrf, open_translator
from qwq.errors import QwqError, UsageError

TEXTS = [
    "The committee decided yesterday to postpone the meeting.",
    "",
    "She has 3 cats.\n\nThe [old] dog sleeps {here} $5.",
]


def _directions():
    if not shutil.which("apertium"):
        return ""
    return subprocess.run(["apertium", "-l"], capture_output=True, text=True).stdout


needs_apertium = pytest.mark.skipif(
    "eng-spa" not in _directions(), reason="apertium eng-spa is not installed: apt install apertium-eng-spa"
)


@needs_apertium
def test_apertium_translates_line_by_line():
    """As many texts and lines come back as went in, empty ones too, and the engine's own marks do not matter."""
    spanish = Apertium("eng-spa")(TEXTS)
    assert "comité" in spanish[0]
    assert [text.count("\n") for text in spanish] == [0, 0, 2]
    assert spanish[1] == ""
    english = Apertium("spa-eng")(spanish)
    assert "committee" in english[0]
    assert "[old]" in english[2] or "old" in english[2]


@needs_apertium
def test_back_translation_through_apertium_keeps_what_kept_its_meaning():
    """Real round trips: other words, like the original, the same numbers."""
    texts = [
        "The jury praised the administration of the city for the manner in which the election was conducted.",
        "She has 3 cats.",
    ]
    wordings = back_translation(Apertium("eng-spa"), Apertium("spa-eng"))(texts)
    assert wordings[0] is not None
    assert wordings[0] != texts[0]
    assert chrf(wordings[0], texts[0]) > 0.55


@needs_apertium
def test_a_direction_that_is_not_installed_is_one_line():
    """With the command that lists those that are."""
    with pytest.raises(QwqError, match="apertium -l lists"):
        Apertium("eng-klingon")


def test_a_missing_engine_is_one_line(monkeypatch):
    """With what to install."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(QwqError, match="apt install apertium-eng-spa"):
        Apertium("eng-spa")


@pytest.mark.parametrize(
    ("wording", "kept"),
    [("The meeting starts at 10 on Monday", True), ("The meeting begins at 10 o'clock on Monday", True), ("The meeting begins at 11 on Monday", False),
     ("Bananas are rich in 10 minerals", False), ("The meeting begins at  10 on Monday", False), ("", False)],
)  # fmt: skip
def test_round_trips_that_lose_the_meaning_are_dropped(wording, kept):
    """Other numbers, another subject, nothing at all, or nothing new."""
    reword = back_translation(lambda texts: texts, lambda texts: [wording] * len(texts))
    assert reword(["The meeting begins at 10 on Monday"]) == [wording if kept else None]


@given(st.text("ab c中文", max_size=30), st.text("ab c中文", max_size=30))
@settings(deadline=None)
def test_chrf_is_sacrebleus(text, reference):
    """Against the reference implementation, to its two digits."""
    sacrebleu = pytest.importorskip("sacrebleu")
    if "".join(text.split()) and "".join(reference.split()):
        theirs = sacrebleu.CHRF(eps_smoothing=False).sentence_score(text, [reference]).score
        assert chrf(text, reference) == pytest.approx(theirs / 100, abs=1e-3)


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """A tiny Marian model with random weights and its tokenizer, as a local folder."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("sacremoses", reason="Marian's tokenizer wants sacremoses")
    import sentencepiece

    folder = tmp_path_factory.mktemp("marian")
    text = folder / "text"
    text.write_text("the old dog sleeps here and she has three cats\n" * 50)
    for name in ("source", "target"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(folder / name), vocab_size=40, minloglevel=2, hard_vocab_limit=False
        )
        (folder / f"{name}.model").rename(folder / f"{name}.spm")
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    pieces = [
        "</s>",
        "<unk>",
        *(p for p in map(model.id_to_piece, range(model.get_piece_size())) if p not in ("<s>", "</s>", "<unk>")),
        "<pad>",
    ]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    pad = len(pieces) - 1
    config = transformers.MarianConfig(
        vocab_size=len(pieces), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=300, init_std=0.5, pad_token_id=pad, decoder_start_token_id=pad, eos_token_id=0,
        forced_eos_token_id=0, bos_token_id=0, num_beams=1,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.MarianMTModel(config).save_pretrained(folder)
    transformers.MarianTokenizer(
        source_spm=str(folder / "source.spm"), target_spm=str(folder / "target.spm"), vocab=str(folder / "vocab.json")
    ).save_pretrained(folder)
    return folder


def test_a_transformers_model_translates_in_batches(marian):
    """Batches are sorted by length inside; each text gets its own answer, whatever stands beside it."""
    texts = ["she has three cats and the old dog sleeps here", "cats"]
    translate = open_translator(str(marian))
    assert isinstance(translate, Seq2Seq)
    together = translate(texts)
    assert together == [translate([text])[0] for text in texts]
    assert len(set(together)) > 1


def test_a_ctranslate2_model_translates_in_batches(marian, tmp_path):
    """The converted model, with the original's tokenizer files beside it."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    folder = tmp_path / "ct2"
    ctranslate2.converters.TransformersConverter(str(marian)).convert(str(folder))
    for name in ("vocab.json", "source.spm", "target.spm", "tokenizer_config.json"):
        shutil.copy(marian / name, folder / name)
    translate = open_translator(str(folder))
    assert isinstance(translate, CTranslate2)
    texts = ["the old dog", "she has three cats", "cats"]
    together = translate(texts)
    assert together == [translate([text])[0] for text in texts]
    assert len(set(together)) > 1


@pytest.mark.parametrize("name", ["nowhere", "nowhere:en:zh", "a:b"])
def test_an_unknown_translator_is_named(name):
    """And the forms that there are."""
    with pytest.raises(UsageError, match="give apertium:eng-spa, FOLDER or FOLDER:source:target"):
        open_translator(name)
