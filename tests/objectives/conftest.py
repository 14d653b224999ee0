"""Windows of packed documents, and the ids of the shared tokenizer with room for the spare ones."""

import pytest
import torch
from shared_text import sentences

from qwq.objectives import Vocabulary


@pytest.fixture(scope="session")
def vocabulary(tokenizer):
    return Vocabulary(tokenizer, tokenizer.vocab_size + 64)


@pytest.fixture(scope="session")
def window(vocabulary):
    """Four rows of documents of one to six sentences."""
    generator, ids = torch.Generator().manual_seed(3), []
    for line in sentences(400):
        ids += vocabulary.tokenizer.encode(line)
        if torch.rand((), generator=generator) < 0.3:
            ids.append(vocabulary.separator)
    length = min(400, len(ids) // 4 - 1)
    rows = torch.tensor(ids[: 4 * (length + 1)]).view(4, length + 1)
    return rows[:, :-1], rows[:, 1:]


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
