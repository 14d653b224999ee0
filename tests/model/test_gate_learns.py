"""The gate of learnable attention: training raises the share of attention that the blocks it keeps would have."""

import torch
from torch.nn import functional as F

from qwq.kernels import sparse
from qwq.model import Decoder, ModelConfig, sparsity

SIZE, TOKENS, ASKED = 4, 48, 44  # the last block asks for what one of the first eight holds


def hidden_values(count, generator):
    """Sequences of two noise tokens with one other token at a random early place, which the last block must name."""
    ids = torch.randint(2, (count, TOKENS), generator=generator)
    values = torch.randint(17, 32, (count,), generator=generator)
    ids[torch.arange(count), torch.randint(32, (count,), generator=generator)] = values
    ids[:, ASKED:] = 16
    return ids, values


def covered(model, ids, monkeypatch):
    """Mean share of the dense attention of the asking queries that lies in the blocks of the layout."""
    shares, attend = [], sparsity.attend

    def spy(query, key, value, layout, choice):
        full = choice.extend(layout)
        kept = sparse.pair_mask(sparse.BlockLayout(full.tiles, full.index), TOKENS, TOKENS, query.dtype) == 0
        logits = query.unflatten(1, (key.shape[1], -1)) @ key[:, :, None].transpose(-1, -2) * query.shape[-1] ** -0.5
        later = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
        dense = logits.masked_fill(later, -torch.inf).softmax(-1)
        shares.append(float((dense * kept[:, :, None]).sum(-1)[..., ASKED:].mean()))
        return attend(query, key, value, layout, choice)

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(sparsity, "attend", spy)
        model(ids)
    return shares[0]


def test_training_raises_the_share_of_attention_that_is_kept(monkeypatch):
    config = ModelConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, attention_patterns=("local(4)+learnable(2)",), attention_block_size=SIZE,
        use_qk_norm=True, initializer_range=0.1,
    )  # fmt: skip
    model, generator = Decoder(config), torch.Generator().manual_seed(1)
    model.init_weights(1)
    held_out, _ = hidden_values(64, torch.Generator().manual_seed(99))
    before = covered(model, held_out, monkeypatch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(700):
        ids, values = hidden_values(32, generator)
        logits = model(ids)[:, ASKED:]
        loss = F.cross_entropy(logits.flatten(0, 1), values.repeat_interleave(TOKENS - ASKED))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = covered(model, held_out, monkeypatch)
    assert loss.item() < 0.5  # of 2.7 for a guess: the value is found
    assert after > before + 0.2
