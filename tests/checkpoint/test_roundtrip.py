"""A checkpoint that was written is the checkpoint that is read, in every format; a damaged one is named."""

import errno
import json
import shutil

import pytest
import torch
import transformers

from qwq.checkpoint import convert, huggingface, load, native
from qwq.checkpoint.config_hf import to_hf
from qwq.errors import QwqError, UsageError
from qwq.model import Decoder, ModelConfig


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A checkpoint of this project."""
    native.save(tmp_path / "tiny", checkpoint.model, checkpoint.tokenizer, {"name": "test"}, generation={"top_k": 20})
    return tmp_path / "tiny"


def same(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_save_and_load_are_identical(checkpoint, folder):
    again = load(folder)
    assert again.config == checkpoint.config
    assert same(again.model, checkpoint.model)
    assert again.generation == {"top_k": 20}
    assert again.recipe == {"name": "test"}
    assert again.tokenizer.encode("the cat 你好") == checkpoint.tokenizer.encode("the cat 你好")


def test_to_hugging_face_and_back_is_identical(checkpoint, folder, tmp_path):
    convert(folder, "hf", tmp_path / "hf")
    convert(tmp_path / "hf", "qwq", tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.config == checkpoint.config
    assert same(again.model, checkpoint.model)
    assert again.generation == {"top_k": 20, "eos_token_id": list(checkpoint.tokenizer.eos_token_ids)}


@torch.no_grad()
def test_transformers_computes_the_same_from_the_converted_folder(checkpoint, folder, tmp_path):
    convert(folder, "hf", tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "the river 今天天气很好 42"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == checkpoint.tokenizer.encode(text)
    torch.testing.assert_close(checkpoint.model(torch.tensor([ids])), theirs(torch.tensor([ids])).logits)


def test_shards_and_index_are_written_and_read(checkpoint, tmp_path):
    tmp_path.joinpath("sharded").mkdir()
    huggingface.write(checkpoint.model, tmp_path / "sharded", generation={}, max_shard_bytes=60_000)
    checkpoint.tokenizer.save(tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    assert same(load(tmp_path / "sharded").model, checkpoint.model)
    assert same(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "sharded"), checkpoint.model)


@pytest.mark.parametrize(
    "flags",
    [
        {"use_qk_norm": True, "attention_bias": True},
        {"use_qk_norm": True, "mlp_bias": True},
        {"attention_bias": True, "mlp_bias": True},
        {"attention_output_bias": True},
    ],
)
def test_what_has_no_slot_in_a_hugging_face_class_is_refused_by_name(flags):
    with pytest.raises(QwqError, match="no Hugging Face class has a slot for .*" + next(iter(flags))):
        to_hf(ModelConfig(**flags))


def test_a_full_disk_leaves_the_previous_checkpoint_whole(checkpoint, folder, monkeypatch):
    other = Decoder(checkpoint.config)
    other.init_weights(seed=9)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(native, "write_manifest", full)
    with pytest.raises(QwqError, match=r"No space left.*untouched"):
        native.save(folder, other, checkpoint.tokenizer, {})
    assert same(load(folder).model, checkpoint.model)
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), r"model.safetensors is missing; .*names it with [\d,]+ bytes"),
        (lambda f: truncate(f / "model.safetensors"), r"model.safetensors has [\d,]+ bytes where [\d,]+ were expected"),
        (lambda f: (f / "recipe.json").write_text(json.dumps({"name": "tesT"}, indent=2) + "\n"), "altered"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is not valid JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), "a JSON object was expected"),
        (lambda f: shutil.rmtree(f), "no such folder"),
        (lambda f: [p.unlink() for p in f.iterdir()], "is not a model"),
    ],
)
def test_a_damaged_checkpoint_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(QwqError, match=message):
        load(folder)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: edit(f / "config.json", architectures=["MambaForCausalLM"], model_type="mamba"), "MambaForCausalLM"),
        (lambda f: edit(f / "config.json", use_sliding_window=True), "use_sliding_window"),
        (lambda f: edit(f / "config.json", quantization_config={"bits": 4}), "quantization_config"),
        (lambda f: edit(f / "config.json", hidden_act="gelu_new"), "gelu_new"),
        (lambda f: edit(f / "config.json", hidden_size=128), r"has shape \[.*the config says"),
        (lambda f: edit(f / "config.json", num_hidden_layers=3), "layers.2.*is missing"),
        (lambda f: edit(f / "config.json", num_hidden_layers=1), "layers.1.*no place"),
        (lambda f: edit(f / "config.json", num_attention_heads=3), "num_attention_heads"),
        (lambda f: edit(f / "config.json", rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "dynamic"),
        (lambda f: truncate(f / "model.safetensors"), "truncated"),
        (lambda f: (f / "model.safetensors").write_bytes(b"hello"), "truncated or not safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pickle"),
        (lambda f: (f / "config.json").write_text("not json"), "config.json is not valid JSON"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer"),
        (lambda f: [p.unlink() for p in f.glob("token*")], "tokenizer"),
    ],
)
def test_a_damaged_hugging_face_folder_is_named(folder, tmp_path, damage, message):
    convert(folder, "hf", tmp_path / "hf")
    damage(tmp_path / "hf")
    with pytest.raises(QwqError, match=message):
        load(tmp_path / "hf")


def test_converting_over_something_is_refused(folder):
    with pytest.raises(UsageError, match="there already"):
        convert(folder, "hf", folder)
