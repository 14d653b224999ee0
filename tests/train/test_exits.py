"""Where a model's exits are sure, by domain."""

import dataclasses

import pytest
import torch

from qwq.model import Decoder
from qwq.train.exits import exits_by_domain


@pytest.fixture
def model(tiny_config):
    made = Decoder(dataclasses.replace(tiny_config, num_hidden_layers=4, exit_layers=(0, 1)))
    made.init_weights(0)
    return made.eval()


def test_a_confidence_that_nothing_reaches_means_full_depth(model):
    ids = {"en": [torch.randint(64, (2, 8))]}
    found = exits_by_domain(model, ids, 1.1)["en"]
    assert (found.mean_depth, found.early, found.agreement) == (4.0, 0.0, 1.0)


def test_a_confidence_that_all_reach_means_the_first_exit(model):
    found = exits_by_domain(model, {"en": [torch.randint(64, (2, 8))]}, 0.0)["en"]
    assert (found.mean_depth, found.early) == (1.0, 1.0)


def test_agreement_is_with_the_guess_of_the_full_depth(model):
    ids = torch.randint(64, (1, 16))
    first = model.lm_head(model.hidden(ids, num_layers=1)).argmax(-1)
    full = model(ids).argmax(-1)
    found = exits_by_domain(model, {"en": [ids]}, 0.0)["en"]
    assert found.agreement == pytest.approx(float((first == full).float().mean()))
