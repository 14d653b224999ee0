"""The same numbers as `transformers`: random tiny Qwen2-MoE, Qwen3-MoE and Mixtral, in float64; files in and out."""

import json

import pytest
import torch
import transformers

from qwq.checkpoint import huggingface
from qwq.checkpoint.config_hf import from_hf, to_hf
from qwq.errors import QwqError
from qwq.model import Decoder, KVCache, ModelConfig

SHAPE = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # large, so that an error in any layer shows
}
QWEN = {"moe_intermediate_size": 40, "num_experts": 6}
CASES = {
    "qwen2-moe": (transformers.Qwen2MoeConfig, {**QWEN, "shared_expert_intermediate_size": 56}),
    "qwen2-moe-normalised": (
        transformers.Qwen2MoeConfig,
        {**QWEN, "shared_expert_intermediate_size": 56, "norm_topk_prob": True, "num_experts_per_tok": 3},
    ),
    "qwen3-moe": (transformers.Qwen3MoeConfig, {**QWEN, "norm_topk_prob": True, "head_dim": 16}),
    "qwen3-moe-some-layers": (
        transformers.Qwen3MoeConfig,
        {**QWEN, "decoder_sparse_step": 2, "tie_word_embeddings": True},
    ),
    "qwen3-moe-dense-layers": (transformers.Qwen3MoeConfig, {**QWEN, "mlp_only_layers": [0, 2], "hidden_act": "gelu"}),
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": 4}),
}


@pytest.fixture(params=CASES, scope="module")
def theirs(request):
    """The `transformers` model, float64."""
    kind, changes = CASES[request.param]
    torch.manual_seed(0)
    config = kind(**{**SHAPE, **changes}, experts_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for (
            parameter
        ) in model.parameters():  # norms, biases and routers too: at their initial values they prove nothing
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(scope="module")
def ours(theirs):
    """The same weights, from `transformers`' memory, where experts are stacked."""
    config = from_hf({**theirs.config.to_dict(), "architectures": [type(theirs).__name__]})
    return huggingface.build(config, iter(theirs.state_dict().items()), torch.float64, "memory").eval()


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@torch.no_grad()
def test_logits_with_and_without_cache_equal_transformers(theirs, ours):
    ids = torch.randint(SHAPE["vocab_size"], (2, 40))
    reference = theirs(ids).logits
    assert relative_error(ours(ids), reference) < 1e-5
    cache = KVCache(ours.config, 2, torch.float64)
    steps = [(0, 17), (17, 30), *((i, i + 1) for i in range(30, 40))]
    cached = torch.cat([ours(ids[:, a:b], cache=cache.rows(0, 2)) for a, b in steps], dim=1)
    assert relative_error(cached, reference) < 1e-5


def test_gradients_equal_transformers(theirs, ours):
    ids = torch.randint(SHAPE["vocab_size"], (2, 20))
    weights = torch.randn(2, 20, SHAPE["vocab_size"], dtype=torch.float64)
    gradients = []
    for model, logits in ((theirs, theirs(ids).logits), (ours, ours(ids))):
        parameters = dict(model.named_parameters())
        found = torch.autograd.grad((logits * weights).sum(), list(parameters.values()))
        gradients.append(dict(zip(parameters, found, strict=True)))
    assert gradients[0].keys() == gradients[1].keys()
    for name, reference in gradients[0].items():
        assert relative_error(gradients[1][name], reference) < 1e-5, name


@torch.no_grad()
def test_files_of_transformers_are_read_and_files_for_it_are_written(theirs, ours, tmp_path):
    theirs.save_pretrained(tmp_path / "theirs")
    config = from_hf(json.loads((tmp_path / "theirs" / "config.json").read_text()))
    read = huggingface.build(config, huggingface.read_tensors(tmp_path / "theirs"), None, tmp_path)
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in read.state_dict().items())
    (tmp_path / "ours").mkdir()
    huggingface.write(ours, tmp_path / "ours", generation={}, max_shard_bytes=100_000)
    names = set(json.loads((tmp_path / "ours" / huggingface.INDEX).read_text())["weight_map"])
    assert any(".experts.3." in name for name in names)  # one by one, as published checkpoints have them
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float64)
    assert type(again) is type(theirs)
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_config_survives_the_way_out_and_back(ours):
    assert from_hf(to_hf(ours.config)) == ours.config
    assert sum(p.numel() for p in ours.parameters()) == ours.config.num_parameters()


def test_either_name_of_the_number_of_experts_is_read():
    config = to_hf(ModelConfig(num_experts=4, moe_intermediate_size=64, use_qk_norm=True))
    assert from_hf(config).num_experts == 4
    config["num_local_experts"] = config.pop("num_experts")
    assert from_hf(config).num_experts == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router_bias_update_rate": 0.001}, "router_bias_update_rate=0.001"),
        ({"router_z_loss_coef": 0.1}, "router_z_loss_coef"),
        ({"attention_patterns": ("local(64)",)}, "attention_patterns"),
        ({"exit_layers": (1,)}, "exit_layers"),
        ({"mod_layers": (1,)}, "mod_layers"),
        ({"shared_qk": True}, "shared_qk"),
        ({"norm_type": "layer_norm"}, "norm_type"),
        ({"position_embedding": "sinusoidal"}, "position_embedding"),
        ({"gated_mlp": False}, "gated_mlp"),
        ({"architecture": "encoder"}, "architecture"),
        ({"norm_topk_prob": False}, "norm_topk_prob=False"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"use_qk_norm": True, "shared_expert_intermediate_size": 64}, "shared_expert_intermediate_size=64"),
    ],
)
def test_what_no_class_with_experts_has_a_slot_for_is_refused_by_name(changes, message):
    with pytest.raises(QwqError, match=f"no Hugging Face class has a slot for .*{message}"):
        to_hf(ModelConfig(num_experts=4, moe_intermediate_size=64, **changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("model.layers.0.mlp.experts.2.up_proj.weight"), "gate_up_proj has only 7 of its 4 experts"),
        (lambda t: [t.pop(k) for k in list(t) if ".layers.1.mlp.experts" in k], r"layers.1.mlp.experts.*is missing"),
        (lambda t: t.update({"model.layers.0.mlp.experts.4.up_proj.weight": torch.ones(8, 16)}), "experts.4.*no place"),
        (
            lambda t: t.update({"model.layers.0.mlp.experts.1.up_proj.weight": torch.ones(9, 16)}),
            "experts.1.*has shape",
        ),
    ],
)
def test_damaged_experts_are_named(damage, message):
    config = ModelConfig(vocab_size=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=1,
                         num_key_value_heads=1, head_dim=16, num_experts=4, moe_intermediate_size=8)  # fmt: skip
    model = Decoder(config)
    model.init_weights(0)
    tensors = {k: t for n, p in model.named_parameters() for k, t in huggingface._split(n, p.detach(), "qwen3_moe")}
    damage(tensors)
    with pytest.raises(QwqError, match=message):
        huggingface.build(config, iter(tensors.items()), None, "memory")


def test_sliding_window_of_mixtral_is_refused():
    config = to_hf(ModelConfig(num_experts=4, moe_intermediate_size=64))
    assert config["architectures"] == ["MixtralForCausalLM"]
    with pytest.raises(QwqError, match="sliding_window is set"):
        from_hf({**config, "sliding_window": 4096})
