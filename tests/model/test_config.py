"""ModelConfig: what it counts and what it refuses."""

import pytest
import torch

from qwq.model import PRESETS, Decoder, ModelConfig


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_counted_exactly(name):
    with torch.device("meta"):
        model = Decoder(PRESETS[name])
    assert sum(p.numel() for p in model.parameters()) == PRESETS[name].num_parameters()


@pytest.mark.parametrize(("name", "millions"), [("qwq-nano", 8), ("qwq-small", 125)])
def test_presets_have_the_size_they_are_named_for(name, millions):
    assert PRESETS[name].num_parameters() == pytest.approx(millions * 1e6, rel=0.1)


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

    config = PRESETS["qwq-nano"]
    model = Decoder(config).double()
    # The counter knows the plain products: no oneDNN (float64), no fused attention.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 64, dtype=torch.long))
    # Every query is counted against all 64 keys: the counter does not know of the causal mask.
    assert counter.get_total_flops() == pytest.approx(64 * config.flops_per_token(64), rel=0.02)
