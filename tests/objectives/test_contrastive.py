"""Contrastive losses: beside the plain formulas, and safe where captions repeat."""

import math

import pytest
import torch
from torch.nn import functional as F

from qwq.model import ModelConfig, build
from qwq.objectives import Contrastive
from qwq.objectives.contrastive import info_nce, multi_positive, sigmoid
from qwq.train.gradients import compute_gradients

LOSSES = {"info_nce": info_nce, "multi_positive": multi_positive, "sigmoid": sigmoid}


def embeddings(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (F.normalize(torch.randn(count, 6, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2))


def test_without_repeats_both_losses_are_clips():
    """Cross-entropy of the matrix of similarities, both ways."""
    a, b = embeddings(5)
    logits, own = 10 * a @ b.t(), torch.arange(5)
    clip = (F.cross_entropy(logits, own) + F.cross_entropy(logits.t(), own)) / 2
    for loss in (info_nce, multi_positive):
        assert loss(a, b, own, 10.0).item() / 5 == pytest.approx(clip.item(), rel=1e-12)


def test_sigmoid_asks_about_every_combination():
    """SigLIP's pseudocode, term by term."""
    a, b = embeddings(4)
    expected = 0.0
    for i in range(4):
        for j in range(4):
            sign = 1 if i == j else -1
            expected += math.log1p(math.exp(-sign * (10 * float(a[i] @ b[j]) - 3)))
    assert sigmoid(a, b, torch.arange(4), 10.0, -3.0).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_repeated_caption_is_never_pushed_away(loss):
    """Images 0 and 2 have one caption. By the gradient of each similarity: a against the identity is the similarities."""
    similarities = torch.randn(3, 3, dtype=torch.float64)
    similarities[::2, ::2] = 0.3  # as two equal pairs have

    def pushes(groups):
        leaf = similarities.clone().requires_grad_()
        loss(leaf, torch.eye(3, dtype=torch.float64), torch.tensor(groups), 1.0).backward()
        return leaf.grad[0, 2].item(), leaf.grad[2, 0].item(), leaf.grad[0, 1].item()

    assert max(pushes([0, 1, 0])[:2]) <= 1e-12
    assert pushes([0, 1, 0])[2] > 0
    assert min(pushes([0, 1, 2])) > 0  # what would happen without groups


def test_info_nce_of_one_caption_alone_is_zero():
    """All of one group: there is nothing to tell apart."""
    a, b = embeddings(4)
    assert info_nce(a, b, torch.zeros(4), 20.0).item() == pytest.approx(0, abs=1e-12)


def test_multi_positive_is_least_where_the_group_shares_its_place():
    """The mean over positives reaches log(group size)."""
    same = F.normalize(torch.ones(3, 6, dtype=torch.float64), dim=-1)
    assert multi_positive(same, same, torch.zeros(3), 20.0).item() / 3 == pytest.approx(math.log(3))


@pytest.mark.parametrize("kind", LOSSES)
def test_an_encoder_learns_which_passages_are_neighbours(kind, vocabulary, window):
    config = ModelConfig(
        architecture="encoder",
        vocab_size=vocabulary.vocab_size,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=1,
        head_dim=16,
        initializer_range=0.1,
    )
    model, objective = build(config), Contrastive(vocabulary, kind, longest=16)
    model.init_weights(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    batch = objective.batch(window, torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        losses.append(compute_gradients(model, [batch], objective))
        optimizer.step()
        optimizer.zero_grad()
    assert batch.labelled > 10
    assert losses[-1] < 0.7 * losses[0]


def test_equal_passages_are_of_one_group(vocabulary, generator):
    """Two documents with the same text."""
    line = vocabulary.tokenizer.encode("The river reads a long book. ") * 4
    other = vocabulary.tokenizer.encode("A cat writes to the mountain today. ") * 4
    end = [vocabulary.separator]
    ids = torch.tensor([[*line, *end, *other, *end, *line]])
    groups = Contrastive(vocabulary, longest=len(line) // 2).batch((ids, ids), generator).labels.tolist()
    assert len(groups) == 3
    assert groups[0] == groups[2] != groups[1]
