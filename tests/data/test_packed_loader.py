"""The packed loader: every window once an epoch, next tokens as labels, and a state that resumes exactly."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwq.data import PackedLoader, TokenShards, tokenize
from qwq.data.documents import Document, DocumentWriter
from qwq.errors import QwqError, UsageError


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """Some 1,200 tokens in shards of 100."""
    root = tmp_path_factory.mktemp("loader")
    with DocumentWriter(root / "documents") as writer:
        for i in range(60):
            writer.write(Document(f"The cat reads paper number {i * i}, and the dog writes {i}.", "s", language="en"))
    tokenize(root, tokenizer, root / "tokens", shard_tokens=100, progress=False)
    return root / "tokens"


def take(loader, count):
    return [next(loader) for _ in range(count)]


def same(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_an_epoch_is_every_window_once_and_labels_are_the_next_tokens(folder):
    """Put in order again, the windows are the text; the second epoch has the same windows in another order."""
    loader = PackedLoader(folder, 1, 16, seed=4)
    tokens = torch.from_numpy(TokenShards(folder)[0 : loader.windows * 16 + 1])
    first, second = (take(loader, loader.windows) for _ in range(2))
    assert loader.epoch == 2
    expected = sorted(zip(tokens[:-1].view(-1, 16).tolist(), tokens[1:].view(-1, 16).tolist(), strict=True))
    for epoch in (first, second):
        assert sorted((x[0].tolist(), y[0].tolist()) for x, y in epoch) == expected
        assert all(x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (1, 16) for x, y in epoch)
    assert not same(first, second)


@given(
    batch_size=st.integers(1, 7),
    seq_len=st.integers(1, 90),
    seed=st.integers(0, 2**31),
    split=st.integers(0, 40),
    rest=st.integers(1, 20),
    world=st.integers(1, 3),
)
def test_resumed_at_any_point_the_sequence_is_the_same(folder, batch_size, seq_len, seed, split, rest, world):
    """A state that went through JSON, in a new loader, on any rank: identical batches from there on, over epoch borders."""
    for rank in range(world):
        options = {"seed": seed, "rank": rank, "world_size": world}
        whole = PackedLoader(folder, batch_size, seq_len, **options, checksums=False)
        begun = PackedLoader(folder, batch_size, seq_len, **options, checksums=False)
        take(begun, split)
        resumed = PackedLoader(folder, batch_size, seq_len, **options, checksums=False)
        resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
        take(whole, split)
        assert same(take(resumed, rest), take(whole, rest))
        assert resumed.state_dict() == whole.state_dict()


@given(world=st.integers(1, 5), batch_size=st.integers(1, 4), steps=st.integers(1, 12), then=st.integers(1, 4))
def test_ranks_share_one_sequence_and_their_number_may_change(folder, world, batch_size, steps, then):
    """Side by side the ranks' batches are the batches of one; their common state continues on one rank."""
    ranks = [PackedLoader(folder, batch_size, 16, 9, rank=r, world_size=world, checksums=False) for r in range(world)]
    alone = PackedLoader(folder, batch_size * world, 16, 9, checksums=False)
    for _ in range(steps):
        parts = [next(loader) for loader in ranks]
        joined = tuple(torch.cat(side) for side in zip(*parts, strict=True))
        assert same([joined], [next(alone)])
    assert len({json.dumps(loader.state_dict()) for loader in ranks}) == 1
    single = PackedLoader(folder, batch_size * world, 16, 9, checksums=False)
    single.load_state_dict(ranks[-1].state_dict())
    assert same(take(single, then), take(alone, then))


def test_seeds_give_different_orders(folder):
    """And the same seed the same one."""
    one, two, other = (take(PackedLoader(folder, 4, 16, seed), 5) for seed in (1, 1, 2))
    assert same(one, two)
    assert not same(one, other)


def test_too_few_tokens_for_a_window_is_one_clear_line(folder):
    """How many there are, how many are needed; exactly enough is enough."""
    tokens = len(TokenShards(folder))
    assert PackedLoader(folder, 2, tokens - 1).windows == 1
    with pytest.raises(QwqError, match=rf"holds {tokens:,} tokens, and one window of {tokens:,} needs {tokens + 1:,}"):
        PackedLoader(folder, 1, tokens)


def test_a_state_of_other_data_is_refused(folder, tokenizer, tmp_path):
    """Another seed, another window, other tokens: each by name, instead of a silent other order."""
    state = PackedLoader(folder, 2, 16, seed=1).state_dict()
    with pytest.raises(QwqError, match="cannot resume the data: seed was 1 and is now 2"):
        PackedLoader(folder, 2, 16, seed=2).load_state_dict(state)
    with pytest.raises(QwqError, match="seq_len was 16 and is now 8"):
        PackedLoader(folder, 2, 8, seed=1).load_state_dict(state)
    with DocumentWriter(tmp_path / "documents") as writer:
        writer.write(Document("other text " * 20, "s"))
    tokenize(tmp_path, tokenizer, tmp_path / "tokens", progress=False)
    with pytest.raises(QwqError, match="tokens was"):
        PackedLoader(tmp_path / "tokens", 2, 16, seed=1).load_state_dict(state)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"seq_len": 0}, {"world_size": 0}, {"rank": 2, "world_size": 2}])
def test_values_out_of_range_are_named(folder, wrong):
    """The argument and its value."""
    with pytest.raises(UsageError, match=f"^{next(iter(wrong))} must be"):
        PackedLoader(folder, **{"batch_size": 1, "seq_len": 8} | wrong)
