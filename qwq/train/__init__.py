"""Loss to checkpoint: one loop, its optimizers and its schedule."""

from qwq.train.loop import Result, train
from qwq.train.plan import dry_run

__all__ = ["Result", "dry_run", "train"]
