"""How good is it: benchmarks from local files in their official formats, one file a benchmark."""

from qwq.evals.runner import evaluate
from qwq.evals.suite import NAMES, run, tasks_named

__all__ = ["NAMES", "evaluate", "run", "tasks_named"]
