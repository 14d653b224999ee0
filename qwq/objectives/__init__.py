"""Logits to loss: what a model is asked to learn, as objects that build their batches and sum their loss."""

from qwq.objectives.causal_lm import CausalLM
from qwq.objectives.contrastive import Contrastive
from qwq.objectives.cross_entropy import IGNORE, cross_entropy_sum
from qwq.objectives.distillation import Distillation, Mixture
from qwq.objectives.masked_lm import MaskedLM
from qwq.objectives.next_sentence import LateInteraction, NextSentence, SentenceOrder
from qwq.objectives.objective import Batch, Objective, Window
from qwq.objectives.sequence import PrefixLM, SpanDenoising
from qwq.objectives.vocabulary import Vocabulary

__all__ = [
    "IGNORE",
    "Batch",
    "CausalLM",
    "Contrastive",
    "Distillation",
    "LateInteraction",
    "MaskedLM",
    "Mixture",
    "NextSentence",
    "Objective",
    "PrefixLM",
    "SentenceOrder",
    "SpanDenoising",
    "Vocabulary",
    "Window",
    "cross_entropy_sum",
]
