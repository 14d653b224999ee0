"""FlexAttention as a backend of block layouts: the forward pass here, the gradients where there is a GPU."""

import pytest
import torch

from qwq.kernels import flex, sparse
from qwq.model.block_layout import AttentionPattern, cut

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def layout_of(batch, kv_heads, start, queries, size, causal, with_bias, device):
    keys = start + queries
    tiles = cut([start], queries, torch.tensor([keys], device=device), keys, size, causal=causal, padded=False)
    index = AttentionPattern.parse("local(70)+global(16)+random(2)", size).fixed(tiles, 0, kv_heads)
    bias = None
    if with_bias:
        bias = torch.randn(batch, *index.shape[1:], device=device).masked_fill(index < 0, 0)
    return sparse.BlockLayout(tiles, index, bias)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("size", "start", "queries"), [(64, 0, 300), (32, 64, 130), (128, 0, 256)])
def test_flex_equals_the_dense_mask(size, start, queries, causal, with_bias, device):
    """Blocks smaller than FlexAttention's and as large, after a cache, with a last block that is not full."""
    torch.manual_seed(0)
    layout = layout_of(2, 2, start, queries, size, causal, with_bias, device)
    assert flex.takes(layout.tiles, queries)
    query = torch.randn(2, 4, queries, 16, device=device)
    key, value = (torch.randn(2, 2, start + queries, 16, device=device) for _ in range(2))
    if device == "cpu":
        close(flex.flex(query, key, value, layout), sparse.dense(query, key, value, layout))
        return
    results = []
    for backend in (flex.flex, sparse.dense):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        leaves += [layout.bias.clone().requires_grad_()] if with_bias else []
        full = sparse.BlockLayout(layout.tiles, layout.index, leaves[3] if with_bias else None)
        out = backend(*leaves[:3], full)
        out.square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for a, b in zip(*results, strict=True):
        close(a, b)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3 if a.is_cuda else 1e-5)


def test_blocks_that_no_query_lists_are_not_computed():
    """At 2,048 tokens the mask of blocks has a few of all pairs."""
    layout = layout_of(1, 2, 0, 2048, 64, True, False, "cpu")
    listed, _ = flex._tables(layout)
    mask = flex._block_mask(listed, 64, 2, lambda b, h, q, k: k <= q, (2048, 2048))
    assert mask.sparsity() > 60


def test_what_flex_cannot_have_is_left_to_the_gathered_form():
    def tiles(*start, **more):
        return cut([*start], 200, torch.tensor([256]), 256, 64, **{"causal": True, "padded": False} | more)

    assert flex.takes(tiles(0), 200)
    assert not flex.takes(tiles(3), 200)
    assert not flex.takes(tiles(0), 1)
    assert not flex.takes(tiles(0, padded=True), 200)


@pytest.mark.parametrize(("tokens", "way"), [(40, "dense"), (400, "gathered")])
def test_short_texts_take_the_mask_over_all_pairs(tokens, way, monkeypatch):
    """Where no kernel is: as long as the lists are half as long again as the keys."""
    layout = layout_of(1, 2, 0, tokens, 16, True, False, "cpu")
    query, key, value = (torch.randn(1, heads, tokens, 24, dtype=torch.float64) for heads in (4, 2, 2))
    taken = []
    for name in ("dense", "gathered"):
        form = getattr(sparse, name)
        monkeypatch.setattr(sparse, name, lambda *a, name=name, form=form: (taken.append(name), form(*a))[1])
    out = sparse.attend(query, key, value, layout)
    assert taken == [way]
    torch.testing.assert_close(out, sparse.dense(query, key, value, layout), rtol=1e-12, atol=1e-12)
