"""Sparse attention: what a pattern means, and that every way to compute it agrees."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq.kernels import sparse
from qwq.model import Decoder, Encoder, EncoderDecoder, KVCache, ModelConfig
from qwq.model.block_layout import AttentionPattern, cut
from qwq.model.sparsity import SparseAttention

PATTERNS = [
    "local(6)", "global(3)", "random(2, 5)", "learnable(2)",
    "local(4)+global(5)+random(1)", "local(3)+learnable(1)", "local(6)+global(4)+random(2)+learnable(2)",
]  # fmt: skip
SIZE = 4  # tokens of a block


def config(pattern, **more):
    values = {
        "vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "attention_patterns": (pattern,), "attention_block_size": SIZE,
    }  # fmt: skip
    return ModelConfig(**(values | more))


def build(kind, pattern, **more):
    model = kind(config(pattern, architecture=_NAMES[kind], **more)).double()
    model.init_weights(seed=3)
    for name, parameter in model.named_parameters():  # far from the identity and from even attention
        if "attend.gate" in name or "q_proj" in name or "k_proj" in name:
            parameter.data.mul_(20)
    return model.eval()


_NAMES = {Decoder: "decoder", Encoder: "encoder", EncoderDecoder: "encoder-decoder"}


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def ids(*shape):
    return torch.randint(40, shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_is_what_its_string_says(pattern):
    assert str(AttentionPattern.parse(pattern, SIZE)) == pattern
    assert config(pattern).attention_pattern(1) == pattern


@pytest.mark.parametrize("text", ["local", "local(0)", "lokal(3)", "local(3)+", "local(3,4)", "global(-1)", ""])
def test_a_bad_pattern_is_refused_by_name(text):
    with pytest.raises(ValueError, match="attention_patterns"):
        config(text)


def listed(pattern, tokens, causal, layer=0, heads=2, size=SIZE):
    """The layout as sets: [head][query block]."""
    tiles = cut([0], tokens, torch.tensor([tokens]), tokens, size, causal=causal, padded=False)
    index = AttentionPattern.parse(pattern, size).fixed(tiles, layer, heads)[0]
    assert (index.sort(-1).values.diff(dim=-1).ne(0) | index.sort(-1).values[..., 1:].eq(-1)).all()  # none twice
    return [[{int(i) for i in row if i >= 0} for row in head] for head in index]


@given(st.integers(1, 60), st.integers(1, 30), st.booleans())
@settings(deadline=None, max_examples=40)
def test_local_sees_at_least_the_window_and_less_than_a_block_more(tokens, window, causal):
    for block, seen in enumerate(listed(f"local({window})", tokens, causal)[0]):
        first = max(0, block * SIZE - window + 1)
        last = block if causal else min(tokens - 1, (block + 1) * SIZE - 1 + window - 1) // SIZE
        assert seen == set(range(first // SIZE, last + 1))


def test_global_blocks_are_in_every_list_that_may_look_back_to_them():
    assert listed("global(5)", 20, causal=True)[0] == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 3}, {0, 1, 4}]
    assert listed("global(5)", 20, causal=False)[0] == [{0, 1}, {0, 1}, {0, 1, 2}, {0, 1, 3}, {0, 1, 4}]


def test_random_blocks_differ_by_seed_layer_and_head_and_not_by_call():
    draw = lambda seed, layer: listed(f"random(2, {seed})", 400, causal=True, layer=layer)  # noqa: E731
    assert draw(1, 0) == draw(1, 0)
    assert draw(1, 0) != draw(2, 0)
    assert draw(1, 0) != draw(1, 1)
    assert draw(1, 0)[0] != draw(1, 0)[1]
    assert all(seen <= set(range(block + 1)) and block in seen for block, seen in enumerate(draw(1, 0)[0]))
    assert draw(1, 0)[0] == listed("random(2, 1)", 800, causal=True)[0][:100]  # whatever comes later


def test_random_blocks_are_spread_evenly():
    picked = [seen - {400} for head in listed("random(1)", 1604, causal=True, heads=400) for seen in head[400:]]
    drawn = torch.tensor([next(iter(s)) for s in picked if s])
    counts = (drawn // 100).bincount()
    assert counts.min() > 0.6 * counts.max()


def outputs_and_gradients(call, model):
    model.zero_grad()
    out = call()
    out.backward(torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(5)))
    return [out.detach()] + [p.grad.clone() for p in model.parameters() if p.grad is not None]


def through(backend, call, model, monkeypatch):
    with monkeypatch.context() as patch:
        extended = lambda q, k, v, layout, choice: backend(q, k, v, choice.extend(layout) if choice else layout)  # noqa: E731
        patch.setattr("qwq.model.sparsity.attend", lambda *args: extended(*args, *[None] * (5 - len(args))))
        return outputs_and_gradients(call, model)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", ["plain", "shared_qk", "packed"])
@pytest.mark.parametrize("kind", [Decoder, Encoder, EncoderDecoder])
def test_gathered_blocks_equal_the_dense_mask(kind, pattern, shape, monkeypatch):
    """Outputs and every gradient, in float64."""
    more = {"num_encoder_layers": 2} if kind is EncoderDecoder else {}
    model = build(kind, pattern, shared_qk=shape == "shared_qk", **more)
    if shape == "packed":
        source, target = [0, 9, 11, 30], [0, 14, 22, 23]
        calls = {
            Decoder: lambda: model.hidden(ids(1, 30), boundaries=source),
            Encoder: lambda: model(ids(1, 30), boundaries=source),
            EncoderDecoder: lambda: model(ids(1, 30), ids(1, 23), boundaries=source, target_boundaries=target),
        }
    else:
        calls = {
            Decoder: lambda: model(ids(2, 27)),
            Encoder: lambda: model(ids(2, 27)),
            EncoderDecoder: lambda: model(ids(2, 27), ids(2, 18)),
        }
    ours = through(sparse.gathered, calls[kind], model, monkeypatch)
    plain = through(sparse.dense, calls[kind], model, monkeypatch)
    assert len(ours) == len(plain)
    for a, b in zip(ours, plain, strict=True):
        same(a, b)
    if "learnable" in pattern:
        gates = [p.grad for name, p in model.named_parameters() if name.endswith("attend.gate.weight")]
        assert gates
        assert max(g.abs().max() for g in gates) > 0


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_decoder_never_looks_ahead(pattern):
    model, tokens = build(Decoder, pattern), ids(1, 30)
    other = tokens.clone()
    other[0, 21:] = (other[0, 21:] + 1) % 40
    same(model(tokens)[:, :21], model(other)[:, :21])


@given(st.sampled_from(PATTERNS), st.lists(st.integers(1, 11), min_size=1, max_size=6), st.booleans())
@settings(deadline=None, max_examples=40)
def test_prefill_in_chunks_and_decoding_equal_one_pass(pattern, chunks, shared_qk):
    model = build(Decoder, pattern, shared_qk=shared_qk)
    tokens = ids(1, sum(chunks))
    cache = KVCache(model.config, 1, torch.float64)
    with torch.no_grad():
        parts = [model(part, cache=cache.rows(0, 1)) for part in tokens.split(chunks, dim=1)]
        same(torch.cat(parts, 1), model(tokens))


@given(
    st.sampled_from(PATTERNS),
    st.lists(st.integers(1, 17), min_size=2, max_size=4),
    st.lists(st.sampled_from([1, 1, 1, 3, 6]), min_size=1, max_size=4),
)
@settings(deadline=None, max_examples=40)
def test_rows_of_different_length_decode_as_each_alone(pattern, lengths, steps):
    model = build(Decoder, pattern)
    cache, rows = KVCache(model.config, len(lengths), torch.float64), len(lengths)
    tokens = ids(rows, max(lengths) + sum(steps))
    with torch.no_grad():
        for row, length in enumerate(lengths):
            model(tokens[row : row + 1, :length], cache=cache.rows(row, row + 1))
        at = list(lengths)
        for step in steps:
            new = torch.stack([tokens[row, a : a + step] for row, a in enumerate(at)])
            got = model(new, cache=cache.rows(0, rows))
            at = [a + step for a in at]
            for row, a in enumerate(at):
                same(got[row], model(tokens[row : row + 1, :a])[0, -step:])


def test_a_row_that_is_cut_short_or_moved_goes_on_as_if_it_had_never_been_longer():
    """What speculation and shared prefixes do to a cache."""
    model = build(Decoder, "local(4)+learnable(2)")
    right, wrong = ids(1, 40), (ids(1, 40) + 3) % 40
    cache = KVCache(model.config, 2, torch.float64)
    with torch.no_grad():
        model(torch.cat((right[:, :18], wrong[:, 18:31]), 1), cache=cache.rows(0, 1))
        cache.lengths[0] = 18
        model(right[:, 18:26], cache=cache.rows(0, 1))
        cache.move(0, 1)
        cache.lengths[0] = 0
        for t in range(26, 40):
            got = model(right[:, t : t + 1], cache=cache.rows(1, 2))
            same(got[0, -1], model(right[:, : t + 1])[0, -1])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_packed_encoder_equals_a_padded_one(pattern):
    model, lengths = build(Encoder, pattern), [9, 2, 19, 4]
    documents = [ids(1, 40)[:, i : i + n] for i, n in enumerate(lengths)]
    boundaries = torch.tensor([0, *lengths]).cumsum(0).tolist()
    packed = model(torch.cat(documents, 1), boundaries=boundaries)[0]
    padded = torch.zeros(4, max(lengths), dtype=torch.long)
    for row, document in enumerate(documents):
        padded[row, : document.shape[1]] = document
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    same(packed, model(padded, attention_mask=mask)[mask])
    same(packed, torch.cat([model(document)[0] for document in documents]))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_packed_training_equals_each_document_alone(pattern):
    model, lengths = build(Decoder, pattern), [5, 16, 1, 11]
    documents = ids(1, sum(lengths)).split(lengths, dim=1)
    boundaries = torch.tensor([0, *lengths]).cumsum(0).tolist()
    packed = model.hidden(torch.cat(documents, 1), boundaries=boundaries)
    same(packed, torch.cat([model.hidden(document) for document in documents], 1))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_encoder_decoder_writes_token_by_token_what_it_computes_at_once(pattern):
    model = build(EncoderDecoder, pattern, num_encoder_layers=2)
    source, target, mask = ids(2, 21), ids(2, 15), torch.arange(21) < torch.tensor([[21], [13]])
    cache = KVCache(model.config, 2, torch.float64)
    with torch.no_grad():
        memory = model.encode(source, attention_mask=mask)
        once = model.decode(target, memory)
        memory.keep = True
        parts = [model.decode(part, memory, cache=cache.rows(0, 2)) for part in target.split([6, 1, 1, 1, 5, 1], 1)]
        same(torch.cat(parts, 1), once)


def test_a_global_token_of_an_encoder_sees_all_and_a_far_one_does_not():
    model, tokens = build(Encoder, "local(4)+global(4)", num_hidden_layers=1), ids(1, 40)
    other = tokens.clone()
    other[0, 39] = (other[0, 39] + 1) % 40
    changed = (model(tokens) != model(other)).any(-1)[0]
    assert changed[:4].all()
    assert not changed[4:30].any()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", [Decoder, Encoder, EncoderDecoder])
def test_parameters_of_the_gate_are_counted(kind, pattern):
    more = {"num_encoder_layers": 3} if kind is EncoderDecoder else {}
    shape = config(pattern, architecture=_NAMES[kind], **more)
    shape = dataclasses.replace(shape, attention_patterns=("dense", pattern), num_hidden_layers=3)
    assert sum(p.numel() for p in kind(shape).parameters()) == shape.num_parameters()


def test_layers_may_differ():
    model = Decoder(config("dense", attention_patterns=("local(4)", "dense"), num_hidden_layers=4))
    kinds = [isinstance(layer.self_attn.attend, SparseAttention) for layer in model.model.layers]
    assert kinds == [True, False, True, False]
