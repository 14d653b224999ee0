"""Benchmarks by name, and what `qwq eval` calls."""

import contextlib
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from json import dumps
from pathlib import Path

from rich.console import Console

from qwq.checkpoint import Checkpoint, load
from qwq.engine import LanguageModel
from qwq.errors import QwqError, UsageError
from qwq.evals import scorecard
from qwq.evals.dstc import Dstc
from qwq.evals.glue import GLUE, Glue
from qwq.evals.gsm8k import Gsm8k
from qwq.evals.humaneval import HumanEval
from qwq.evals.lambada import Lambada
from qwq.evals.ocnli import Ocnli
from qwq.evals.runner import evaluate
from qwq.evals.squad import cmrc2018, squad, xquad
from qwq.evals.task import Task
from qwq.evals.tuned import TunedGlue
from qwq.evals.vqa import EasyVqa, Vqa
from qwq.evals.wikitext import Wikitext
from qwq.model import Decoder

_MAKERS: dict[str, Callable[[], Task]] = {name: partial(Glue, name) for name in GLUE}
_MAKERS |= {f"{name}-tuned": partial(TunedGlue, name) for name in GLUE}
_MAKERS |= {f"xquad-{language}": partial(xquad, language) for language in ("en", "zh", "es", "de")}
_MAKERS |= {"ocnli": Ocnli, "lambada": Lambada, "squad": squad, "cmrc2018": cmrc2018, "dstc": Dstc, "gsm8k": Gsm8k}
_MAKERS |= {"wikitext": Wikitext, "vqa": Vqa, "easy-vqa": EasyVqa}
_GROUPS = {"glue": GLUE, "glue-tuned": tuple(f"{name}-tuned" for name in GLUE)}
NAMES = (*_GROUPS, "humaneval", *_MAKERS)


def tasks_named(names: Sequence[str], *, unsafe: bool = False) -> list[Task]:
    """Tasks by name: "glue" and "glue-tuned" are all nine, "humaneval@20" draws 20 samples a problem.

    `UsageError`: an unknown name.
    """
    tasks: list[Task] = []
    for name in (one for given in names for one in _GROUPS.get(given, (given,))):
        if name in _MAKERS:
            tasks.append(_MAKERS[name]())
        elif samples := re.fullmatch(r"humaneval(?:@([1-9]\d*))?", name):
            tasks.append(HumanEval(int(samples[1] or 1), unsafe=unsafe))
        else:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"tasks: {', '.join(NAMES)}"
            raise UsageError(f"no task {name!r} ({hint})")
    return tasks


def run(
    model: str,
    tasks: Sequence[str] | None = None,
    suite: str | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    out: Path | None = None,
    json: bool = False,
    unsafe: bool = False,
    *,
    fewshot: int | None = None,
    seed: int = 0,
) -> dict:
    """What `qwq eval` does: measure, print, write `out` (and for the scorecard, scorecard.html beside it).

    A named task that cannot be measured is a `QwqError` once the others are done; of "glue" and the scorecard it is
    listed as not measured.
    """
    if (tasks is None) == (suite is None):
        raise UsageError("give --tasks a,b,c or --suite scorecard")
    if suite not in (None, "scorecard"):
        raise UsageError(f"no suite {suite!r}; there is one: scorecard")
    names = [name for row in scorecard.ROWS.values() for name in row] if tasks is None else tasks
    chosen = tasks_named(names, unsafe=unsafe)
    checkpoint = load(model)
    with contextlib.ExitStack() as stack:
        lm: LanguageModel | Checkpoint = checkpoint
        if isinstance(checkpoint.model, Decoder):
            lm = LanguageModel(checkpoint, max_batch_size=16)
            stack.callback(lm.close)
        result = evaluate(lm, chosen, data_dir=data_dir, limit=limit, fewshot=fewshot, seed=seed, out=out)
    if tasks is None:
        scorecard.write(result, Path("scorecard.html") if out is None else out.with_name("scorecard.html"))
    if json:
        print(dumps(result, ensure_ascii=False))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(scorecard.table(result, everything=tasks is None))
    failed = [name for name in tasks or () if name in result["not_measured"]]
    if failed:
        raise QwqError(f"{failed[0]} could not be measured: {result['not_measured'][failed[0]]}")
    return result
