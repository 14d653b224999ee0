"""Training in a process of its own, that can be killed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from qwq.recipe import Recipe


class Process:
    """`qwq train` as a person runs it."""

    def __init__(self, recipe: Recipe, out: Path, *flags: str, **options):
        file = out.with_suffix(".json")
        file.write_text(json.dumps(recipe.to_dict()), encoding="utf-8")
        command = [sys.executable, "-m", "qwq.cli", "train", str(file), "--out", str(out), *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.metrics = out / "metrics.jsonl"
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, **options)

    def wait_for(self, step: int) -> None:
        """Until that step is in metrics.jsonl."""
        while self.steps() < step:
            if self.process.poll() is not None:
                raise AssertionError(f"ended before step {step}: {self.process.stderr.read()}")
            time.sleep(0.005)

    def steps(self) -> int:
        if not self.metrics.is_file():
            return 0
        lines = self.metrics.read_text(encoding="utf-8").splitlines()
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def end(self, signal: int | None = None) -> tuple[int, str]:
        """(exit code, standard error), after the signal if one is given."""
        if signal is not None:
            self.process.send_signal(signal)
        error = self.process.communicate(timeout=300)[1]
        return self.process.returncode, error
