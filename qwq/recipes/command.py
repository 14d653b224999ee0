"""`qwq train RECIPE`: the recipe's fields are the flags."""

import dataclasses
import difflib
import json
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from qwq.errors import UsageError
from qwq.recipe import Recipe
from qwq.recipes import RECIPES, find
from qwq.tokenizer import load_tokenizer
from qwq.train import dry_run, train
from qwq.train.state import started_with


@dataclass(frozen=True)
class Options:
    """Train a recipe. Every field of it can be given as a flag; --dry-run shows what would be trained."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path = Path("run")
    """Where checkpoints, metrics.jsonl and recipe.json go."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run in --out, from its newest checkpoint."""
    minutes: float | None = None
    """How long to train, in place of training.steps."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the resolved recipe, parameters, memory and FLOPs as JSON, and stop."""


def parse(arguments: list[str]) -> Options:
    """The options of `qwq train RECIPE ...`. `UsageError` names the flag, recipe or value that is wrong."""
    name = next((a for a in arguments[:1] if not a.startswith("-")), None)
    if name is None and not {"-h", "--help"} & set(arguments):
        raise UsageError(f"qwq train needs a recipe: {', '.join(RECIPES)}, or a JSON file")
    recipe = find(name) if name is not None else RECIPES["qwq-nano"]()
    known = list(_flags(Options, ""))
    for argument in arguments[1:]:
        flag = argument.split("=")[0].replace("_", "-")
        if argument.startswith("--") and flag not in known and flag != "--help":
            near = difflib.get_close_matches(flag, known, n=1, cutoff=0.0)[0]
            raise UsageError(f"unknown option {argument.split('=')[0]!r}; the nearest known one is {near!r}")
    options = _read(arguments[name is not None :], recipe, name)
    earlier = started_with(options.out) if options.resume else None
    if earlier is not None:  # the run's own settings, under whatever flags are given now
        options = _read(arguments[name is not None :], earlier, name)
    return options


def _read(flags: list[str], recipe: Recipe, name: str | None) -> Options:
    """The flags over the recipe's own values."""
    try:
        options = tyro.cli(Options, prog=f"qwq train {name or 'RECIPE'}", args=flags, default=Options(recipe))
    except ValueError as error:
        raise UsageError(str(error)) from None
    # Through JSON once: what a file may not say, a flag may not either.
    return dataclasses.replace(options, recipe=Recipe.from_dict(options.recipe.to_dict(), "command line"))


def _flags(cls: Any, prefix: str) -> typing.Iterator[str]:
    """Every flag of a dataclass of options, as it is typed."""
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(kinds[field.name]):
            yield from _flags(kinds[field.name], "" if cls is Options else f"{prefix}{field.name}.")
            continue
        name = f"{prefix}{field.name}".replace("_", "-")
        yield f"--{name}"
        if kinds[field.name] is bool and cls is not Options:
            yield f"--{prefix}no-{field.name}".replace("_", "-")


def main(arguments: list[str]) -> None:
    """Run the verb."""
    options = parse(arguments)
    recipe = options.recipe
    if options.dry_run:
        print(json.dumps(dry_run(recipe), indent=2, ensure_ascii=False))
        return
    data = Path(recipe.data.path)
    tokenizer = load_tokenizer(Path(recipe.tokenizer.path))
    result = train(recipe, data, tokenizer, options.out, resume=options.resume, minutes=options.minutes)
    scores = {name: round(score.bits_per_byte, 4) for name, score in result.scores.items()}
    print(f"{result.checkpoint}: bits per byte {json.dumps(scores)}, {result.tokens_per_second:,.0f} tokens/s")
    sys.stdout.flush()
