"""Encoder and EncoderDecoder: the same block, packed or padded, cached or not, beside torch's own layers."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import nn

from qwq.checkpoint import native
from qwq.engine.text import LanguageModel
from qwq.errors import UsageError
from qwq.model import PRESETS, Encoder, EncoderDecoder, KVCache, ModelConfig, build
from qwq.model.attention import Memory, Tokens
from qwq.model.encoder import CrossBlock
from qwq.model.transformer import TransformerBlock

TINY = ModelConfig(
    architecture="encoder",
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    initializer_range=0.2,
)
MODERN = dataclasses.replace(TINY, use_qk_norm=True)
CLASSIC = dataclasses.replace(
    TINY,
    num_key_value_heads=4,
    hidden_act="relu",
    gated_mlp=False,
    norm_type="layer_norm",
    position_embedding="sinusoidal",
    attention_bias=True,
    attention_output_bias=True,
    mlp_bias=True,
)
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 24, "decoder_sparse_step": 2}
SHAPES = {
    "modern": MODERN,
    "classic": CLASSIC,
    "modern with experts": dataclasses.replace(MODERN, **EXPERTS, shared_expert_intermediate_size=16),
    "classic with experts": dataclasses.replace(CLASSIC, **EXPERTS, router_bias_update_rate=0.01),
    "shared query and key": dataclasses.replace(MODERN, shared_qk=True),
}
LENGTHS = (5, 1, 9, 4)


def made(config):
    model = build(config).double()
    model.init_weights(seed=1)
    with torch.no_grad():  # biases start at 0: any value shows more
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model


def to_encoder_decoder(config):
    return dataclasses.replace(config, architecture="encoder-decoder", num_encoder_layers=2)


def documents(seed, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(61, (length,), generator=generator) for length in lengths]


def packed(texts):
    boundaries = [0]
    for text in texts:
        boundaries.append(boundaries[-1] + len(text))
    return torch.cat(texts)[None], boundaries


def padded(texts):
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=7)
    return ids, torch.arange(ids.shape[1]) < torch.tensor([[len(t)] for t in texts])


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_parameters_are_counted_exactly(config):
    for each in (config, to_encoder_decoder(config), dataclasses.replace(config, tie_word_embeddings=False)):
        assert sum(p.numel() for p in build(each).parameters()) == each.num_parameters()


def test_the_preset_has_24_layers_16_heads_and_five_layers_of_experts():
    """Layers are numbered from 0, as in Hugging Face's mlp_only_layers."""
    config = PRESETS["qwq-encoder-24"]
    with torch.device("meta"):
        model = build(config)
    assert isinstance(model, Encoder)
    assert (len(model.model.layers), config.num_attention_heads) == (24, 16)
    assert [i for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")] == [3, 7, 11, 15, 19]
    assert sum(p.numel() for p in model.parameters()) == config.num_parameters()


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_packed_encoder_equals_padded(config):
    """States and gradients; what stands in the padding does not matter."""
    model, texts = made(config), documents(0)
    ids, boundaries = packed(texts)
    states = model.hidden(ids, boundaries=boundaries)[0]
    weights = torch.randn(states.shape, dtype=torch.float64)
    (states * weights).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    ids, mask = padded(texts)
    same = model.hidden(ids, attention_mask=mask)[mask]
    (same * weights).sum().backward()
    close(states, same)
    for ours, parameter in zip(gradients, model.parameters(), strict=True):
        if parameter.requires_grad and ours is not None:
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("config", [MODERN, CLASSIC], ids=["modern", "classic"])
def test_a_token_sees_its_whole_document_and_no_other(config):
    model, texts = made(config), documents(1)
    ids, boundaries = packed(texts)
    before = model.hidden(ids, boundaries=boundaries)[0]
    ids[0, boundaries[3] - 1] = (ids[0, boundaries[3] - 1] + 1) % 61  # the last token of the third
    changed = (model.hidden(ids, boundaries=boundaries)[0] - before).abs().amax(-1) > 1e-9
    inside = torch.zeros_like(changed)
    inside[boundaries[2] : boundaries[3]] = True
    assert changed.equal(inside)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_packed_encoder_decoder_equals_each_pair_alone(config):
    model, sources, targets = made(to_encoder_decoder(config)), documents(2), documents(3, (3, 6, 1, 8))
    ids, boundaries = packed(sources)
    target_ids, target_boundaries = packed(targets)
    logits = model(ids, target_ids, boundaries=boundaries, target_boundaries=target_boundaries)[0]
    for number, (start, end) in enumerate(pairwise(target_boundaries)):
        close(logits[start:end], model(sources[number][None], targets[number][None])[0])


def test_padded_sources_equal_each_alone():
    model, sources, targets = made(to_encoder_decoder(MODERN)), documents(2), documents(3, (6, 6, 6, 6))
    ids, mask = padded(sources)
    logits = model(ids, torch.stack(targets), attention_mask=mask)
    for row, source, target in zip(logits, sources, targets, strict=True):
        close(row, model(source[None], target[None])[0])


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_decoding_with_the_cache_equals_the_whole_target_at_once(config):
    """Token by token, and in uneven pieces; the memory's keys and values are made once."""
    model = made(to_encoder_decoder(config))
    ids, mask = padded(documents(4))
    targets = torch.stack(documents(5, (7, 7, 7, 7)))
    whole = model.decode(targets, model.encode(ids, attention_mask=mask))
    for sizes in ([1] * 7, [3, 1, 2, 1]):
        memory = model.encode(ids, attention_mask=mask)
        memory.keep = True
        cache = KVCache(model.config, 4, torch.float64)
        parts = [model.decode(piece, memory, cache=cache.rows(0, 4)) for piece in targets.split(sizes, dim=1)]
        close(torch.cat(parts, 1), whole)
        assert len(memory.kept) == model.config.num_hidden_layers


def test_generate_writes_the_likeliest_token_until_the_stop_token():
    """Against the same without a cache, one source at a time."""
    model = made(to_encoder_decoder(MODERN))
    sources = documents(6, (5, 8, 2))
    ids, mask = padded(sources)
    written = model.generate(ids, 0, -1, 12, attention_mask=mask)
    plain = []
    for source in sources:
        row = [0]
        for _ in range(12):
            row.append(int(model(source[None], torch.tensor([row]))[0, -1].argmax()))
        plain.append(row[1:])
    assert written == plain
    stop = plain[0][4]
    cut = [row[: row.index(stop)] if stop in row else row for row in plain]
    assert model.generate(ids, 0, stop, 12, attention_mask=mask) == cut


def copy_attention(ours, theirs):
    theirs.in_proj_weight.copy_(torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]))
    theirs.in_proj_bias.copy_(torch.cat([ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias]))
    theirs.out_proj.load_state_dict(ours.o_proj.state_dict())


@torch.no_grad()
def test_classic_block_equals_torchs_encoder_layer():
    block = made(CLASSIC).model.layers[0]
    peer = nn.TransformerEncoderLayer(
        32, 4, 48, dropout=0.0, layer_norm_eps=1e-6, batch_first=True, norm_first=True, dtype=torch.float64
    )
    copy_attention(block.self_attn, peer.self_attn)
    pairs = {"linear1": "mlp.up_proj", "linear2": "mlp.down_proj", "norm1": "input_layernorm"}
    for theirs, ours in (pairs | {"norm2": "post_attention_layernorm"}).items():
        peer.get_submodule(theirs).load_state_dict(block.get_submodule(ours).state_dict())
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    seen = torch.arange(6) < torch.tensor([[6], [4]])
    ours = block(x, Tokens(torch.arange(6)[None], None, False, seen[:, None, None]))
    assert isinstance(block, TransformerBlock)
    close(ours[seen], peer(x, src_key_padding_mask=~seen)[seen])


@torch.no_grad()
def test_classic_cross_block_equals_torchs_decoder_layer():
    model = made(to_encoder_decoder(CLASSIC))
    block = model.model.layers[1]
    assert isinstance(model, EncoderDecoder)
    assert isinstance(block, CrossBlock)
    peer = nn.TransformerDecoderLayer(
        32, 4, 48, dropout=0.0, layer_norm_eps=1e-6, batch_first=True, norm_first=True, dtype=torch.float64
    )
    copy_attention(block.self_attn, peer.self_attn)
    copy_attention(block.cross_attn, peer.multihead_attn)
    pairs = {"linear1": "mlp.up_proj", "linear2": "mlp.down_proj", "norm1": "input_layernorm"}
    pairs |= {"norm2": "cross_attn_layernorm", "norm3": "post_attention_layernorm"}
    for theirs, ours in pairs.items():
        peer.get_submodule(theirs).load_state_dict(block.get_submodule(ours).state_dict())
    x, states = torch.randn(2, 6, 32, dtype=torch.float64), torch.randn(2, 5, 32, dtype=torch.float64)
    seen = torch.arange(5) < torch.tensor([[5], [3]])
    causal = nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64)
    ours = block(x, Tokens(torch.arange(6)[None], None, True), Memory(states, seen[:, None, None]))
    close(ours, peer(x, states, tgt_mask=causal, tgt_is_causal=True, memory_key_padding_mask=~seen))


@torch.no_grad()
def test_shared_qk_has_a_map_of_attention_for_a_group_and_values_for_a_head():
    """The literal reading of grouping, spelled out head by head: 2 maps, 4 heads of values."""
    attention = made(SHAPES["shared query and key"]).model.layers[0].self_attn
    assert (attention.q_proj.out_features, attention.k_proj.out_features, attention.v_proj.out_features) == (16, 16, 32)
    x = torch.randn(1, 6, 32, dtype=torch.float64)
    query, key = (
        norm(projection(x).view(6, 2, 8))
        for norm, projection in ((attention.q_norm, attention.q_proj), (attention.k_norm, attention.k_proj))
    )
    value, heads = attention.v_proj(x).view(6, 4, 8), []
    for head in range(4):
        group = head // 2
        weights = (query[:, group] @ key[:, group].t() / 8**0.5).softmax(-1)
        heads.append(weights @ value[:, head])
    expected = attention.o_proj(torch.cat(heads, -1))
    close(attention(x, Tokens(torch.arange(6)[None], None, False))[0], expected)


@pytest.mark.parametrize("architecture", ["encoder", "encoder-decoder"])
def test_a_checkpoint_comes_back_as_the_assembly_it_was(architecture, tmp_path):
    config = SHAPES["modern with experts"]
    model = made(config if architecture == "encoder" else to_encoder_decoder(config)).float()
    native.save(tmp_path / "saved", model, None, {})
    config, again = native.load_model(tmp_path / "saved")
    assert config == model.config
    assert type(again) is type(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_an_encoder_cannot_chat(checkpoint):
    """One sentence, not a traceback from inside the engine."""
    config = dataclasses.replace(checkpoint.config, architecture="encoder")
    with pytest.raises(UsageError, match="is an encoder: only a decoder can chat"):
        LanguageModel(dataclasses.replace(checkpoint, config=config, model=build(config)))
