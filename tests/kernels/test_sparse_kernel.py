"""The C++ kernel for blocks against the dense mask in float64, for every instruction set that this machine has."""

import pytest
import torch
from torch.nn import functional as F

from qwq.kernels import sparse
from qwq.kernels.compile import INSTRUCTIONS
from qwq.model.block_layout import AttentionPattern, cut, cut_packed, everything

pytestmark = pytest.mark.skipif(not sparse.takes("cpu", torch.float32, 16, 16), reason="no C++ compiler here")


@pytest.fixture(params=INSTRUCTIONS)
def isa(request, monkeypatch):
    found = torch.backends.cpu.get_cpu_capability().lower()
    names = list(INSTRUCTIONS)
    if found in names and names.index(request.param) < names.index(found):
        pytest.skip(f"this machine has no {request.param}")
    monkeypatch.setenv("QWQ_INSTRUCTIONS", request.param)
    sparse._compiled.cache_clear()
    yield
    sparse._compiled.cache_clear()


def both(layout, query, key, value, bias=None):
    """[outputs and gradients] of the kernel, and of the reference in float64."""
    results = []
    gradient = torch.randn(*query.shape[:3], value.shape[3])
    for backend, dtype in ((sparse.compiled, torch.float32), (sparse.dense, torch.float64)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (query, key, value)]
        leaves += [] if bias is None else [bias.detach().to(dtype).requires_grad_()]
        full = sparse.BlockLayout(layout.tiles, layout.index, None if bias is None else leaves[3])
        out = backend(*leaves[:3], full)
        out.backward(gradient.to(dtype))
        results.append([out.detach(), *(x.grad for x in leaves)])
    return results


def close(ours, plain):
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=3e-5)


def inputs(batch, heads, kv_heads, queries, keys, width, value_width):
    """Laid out as the model has them: heads beside each other in a token."""
    shapes = [(queries, heads, width), (keys, kv_heads, width), (keys, kv_heads, value_width)]
    return [torch.randn(batch, *shape).transpose(1, 2) for shape in shapes]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (6, 1)])
@pytest.mark.parametrize(("tokens", "size"), [(150, 64), (33, 16), (20, 3)])
def test_kernel_equals_the_dense_mask(isa, tokens, size, heads, causal):
    """More and fewer queries than fit in one go, blocks that are not full, a bias of every entry."""
    tiles = cut([0], tokens, torch.tensor([tokens]), tokens, size, causal=causal, padded=False)
    index = AttentionPattern.parse("local(20)+global(16)+random(2)", size).fixed(tiles, 0, heads[1])
    bias = torch.randn(2, *index.shape[1:]).masked_fill(index < 0, 0)
    tensors = inputs(2, *heads, tokens, tokens, 32, 16)
    close(*both(sparse.BlockLayout(tiles, index), *tensors, bias))


def test_packed_documents_and_cross_attention():
    tiles = cut_packed([0, 70, 71, 90], [0, 3, 40, 100], 16, False, torch.device("cpu"))
    index = AttentionPattern.parse("local(10)+random(1)", 16).fixed(tiles, 3, 2)
    close(*both(sparse.BlockLayout(tiles, index), *inputs(1, 4, 2, 90, 100, 16, 16)))


def test_queries_after_a_cache_in_rows_of_different_length():
    tiles = cut([5, 40, 17], 9, torch.tensor([14, 49, 26]), 49, 16, causal=True, padded=False)
    index = AttentionPattern.parse("local(10)+global(16)", 16).fixed(tiles, 0, 1)
    close(*both(sparse.BlockLayout(tiles, index), *inputs(3, 4, 2, 9, 49, 16, 16)))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("tokens", [16, 100, 256, 300])
def test_all_blocks_are_plain_causal_attention(heads, kv_heads, tokens):
    tiles = cut([0], tokens, torch.tensor([tokens]), tokens, 64, causal=True, padded=False)
    query, key, value = inputs(2, heads, kv_heads, tokens, tokens, 16, 16)
    ours = sparse.compiled(query, key, value, sparse.BlockLayout(tiles, everything(tiles)))
    plain = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=2e-5)


def test_large_logits_do_not_overflow():
    tiles = cut([0], 100, torch.tensor([100]), 100, 32, causal=True, padded=False)
    query, key, value = inputs(1, 2, 1, 100, 100, 16, 16)
    ours, plain = both(sparse.BlockLayout(tiles, everything(tiles)), 30 * query, 30 * key, value)
    torch.testing.assert_close(ours[0].double(), plain[0], rtol=1e-3, atol=1e-3)
    assert all(x.isfinite().all() for x in ours)


def test_what_the_kernel_cannot_take_goes_another_way():
    assert not sparse.takes("cpu", torch.float64, 16, 16)
    assert not sparse.takes("cpu", torch.float32, 24, 16)
    assert not sparse.takes("cuda", torch.float32, 16, 16)


@pytest.mark.parametrize(("starts", "queries"), [([0], 70), ([0, 0], 70), ([37, 5], 70), ([90], 1), ([61, 90], 3)])
@pytest.mark.parametrize("causal", [True, False])
def test_what_the_kernel_chooses_is_what_torch_chooses(isa, starts, queries, causal):
    """Without gradients the kernel scores the blocks and adds the best to the lists itself."""
    lengths = torch.tensor(starts) + queries
    keys = int(lengths.max())
    tiles = cut(starts, queries, lengths, keys, 16, causal=causal, padded=False)
    index = AttentionPattern.parse("local(10)+random(1)", 16).fixed(tiles, 0, 2)
    query, key, value = inputs(len(starts), 4, 2, queries, keys, 16, 16)
    asked, pooled = torch.randn(len(starts), 2, index.shape[2], 16), torch.randn(len(starts), 2, -(-keys // 16), 16)
    gate = torch.randn(16, 16)
    layout, choice = sparse.BlockLayout(tiles, index), sparse.Choice(asked, pooled, gate, 2)
    with torch.no_grad():
        ours = sparse.attend(query, key, value, layout, choice)
        extended = choice.extend(layout)
    assert (extended.counts > layout.counts.expand_as(extended.counts)).any()
    torch.testing.assert_close(ours, sparse.dense(query, key, value, extended), rtol=1e-4, atol=2e-5)
    with torch.no_grad():  # nothing to choose from yet
        sparse.attend(query, key, value, layout, sparse.Choice(asked, pooled[:, :, :0], gate, 2))
