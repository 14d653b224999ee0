"""Logits to loss."""

from qwq.objectives.causal_lm import cross_entropy_sum

__all__ = ["cross_entropy_sum"]
