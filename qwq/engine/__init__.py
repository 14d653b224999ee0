"""Checkpoint to tokens: `core` knows token ids only, `text` owns everything that has characters."""

from qwq.engine.core import Engine, PromptTooLong, QueueFull, Request
from qwq.engine.policy import ComputePolicy
from qwq.engine.sampler import SamplingParams
from qwq.engine.text import Delta, LanguageModel, Reply, TokenLogprob, Usage

__all__ = [
    "ComputePolicy",
    "Delta",
    "Engine",
    "LanguageModel",
    "PromptTooLong",
    "QueueFull",
    "Reply",
    "Request",
    "SamplingParams",
    "TokenLogprob",
    "Usage",
]
