"""ModelConfig: what it counts and what it refuses."""

import pytest
import torch

from qwq.model import PRESETS, Decoder, ModelConfig


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_counted_exactly(name):
    with torch.device("meta"):
        model = Decoder(PRESETS[name])
    assert sum(p.numel() for p in model.parameters()) == PRESETS[name].num_parameters()


@pytest.mark.parametrize(
    ("name", "total", "active"), [("qwq-nano", 15.9, 8.5), ("qwq-small", 381, 121), ("qwq-32b-sparse", 32_700, 3_430)]
)
def test_presets_have_the_size_they_are_named_for(name, total, active):
    assert PRESETS[name].num_parameters() == pytest.approx(total * 1e6, rel=0.01)
    assert PRESETS[name].num_parameters(active=True) == pytest.approx(active * 1e6, rel=0.01)


def test_the_extended_presets_differ_only_in_size():
    for name in ("qwq-nano", "qwq-small", "qwq-32b-sparse"):
        config = PRESETS[name]
        kinds = [sorted(part.split("(")[0] for part in p.split("+")) for p in config.attention_patterns]
        assert kinds == [["global", "local", "random"], ["global", "learnable", "local"]]
        assert (config.decoder_sparse_step, config.num_experts_per_tok, config.use_qk_norm) == (2, 2, True)
        assert config.moe_intermediate_size * config.num_experts_per_tok == config.intermediate_size
        assert [round(4 * (exit + 1) / config.num_hidden_layers) for exit in config.exit_layers] == [1, 2]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 0),
        ("num_key_value_heads", 3),
        ("head_dim", 33),
        ("hidden_act", "tanh"),
        ("rope_scaling", {"rope_type": "longrope"}),
        ("rms_norm_eps", -1.0),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        ModelConfig(**{field: value})


def test_flops_of_a_token_match_torchs_own_counter():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = PRESETS["qwq-nano"].dense()
    model = Decoder(config).double()
    # The counter knows the plain products: no oneDNN (float64), no fused attention.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 64, dtype=torch.long))
    # Every query is counted against all 64 keys: the counter does not know of the causal mask.
    assert counter.get_total_flops() == pytest.approx(64 * config.flops_per_token(64), rel=0.02)
