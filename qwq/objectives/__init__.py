"""Logits to loss: what a model is asked to learn, as objects that build their batches and sum their loss."""

from qwq.objectives.causal_lm import CausalLM
from qwq.objectives.cross_entropy import IGNORE, cross_entropy_sum
from qwq.objectives.objective import Batch, Objective, Window

__all__ = ["IGNORE", "Batch", "CausalLM", "Objective", "Window", "cross_entropy_sum"]
