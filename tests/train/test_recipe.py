"""Recipes: JSON both ways, errors that name the key, the command line over them."""

import json

import pytest

from qwq.errors import UsageError
from qwq.recipe import Recipe
from qwq.recipes import RECIPES, find
from qwq.recipes.command import main, parse


@pytest.mark.parametrize("name", RECIPES)
def test_every_named_recipe_parses_and_dry_runs(name, capsys):
    """And says what it would take."""
    main([name, "--dry-run"])
    plan = json.loads(capsys.readouterr().out)
    assert Recipe.from_dict(plan["recipe"]) == RECIPES[name]()
    assert plan["parameters"]["total"] == RECIPES[name]().model.num_parameters()
    assert plan["memory_bytes"]["total"] > 12 * plan["parameters"]["total"]
    assert plan["flops"] == plan["flops_per_token"] * plan["tokens"]


def test_json_both_ways(tmp_path):
    """A file holds what it came from; keys left out have their defaults."""
    recipe = find("qwq-small")
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe.to_dict()))
    assert find(str(path)) == recipe
    path.write_text('{"training": {"minutes": 5}}')
    assert find(str(path)).training.minutes == 5.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model": {"hiden_size": 4}}', r"'model\.hiden_size'; the nearest known one is 'model\.hidden_size'"),
        ('{"trainning": {}}', "'trainning'; the nearest known one is 'training'"),
        ('{"model": {"hidden_size": "big"}}', r"model\.hidden_size must be int, got 'big'"),
        ('{"model": {"hidden_size": true}}', r"model\.hidden_size must be int, got True"),
        ('{"model": {"hidden_size": -1}}', r"model\.hidden_size must be positive"),
        ('{"training": {"optimizer": "sgd"}}', r"training\.optimizer must be one of 'muon', 'adamw', got 'sgd'"),
        ('{"training": {"batch_size": 5, "micro_batch_size": 2}}', r"training\.batch_size \(5\) must be a multiple"),
        ('{"training": {"minutes": -1}}', r"training\.minutes must be positive"),
        ('{"training": 3}', "training must be a JSON object"),
        ("[]", "must be a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_a_wrong_recipe_says_where(tmp_path, text, message):
    """The file, the path of the key, and the nearest known one."""
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        find(str(path))
    assert str(path) in str(error.value)


def test_an_unknown_recipe_names_the_nearest():
    """By name and by file."""
    with pytest.raises(UsageError, match="did you mean 'qwq-nano'"):
        find("qwq-nanno")
    with pytest.raises(UsageError, match="No such file"):
        find("missing.json")


def test_flags_override_the_recipe():
    """Hyphens or underscores; booleans both ways."""
    flags = ["--model.num-hidden-layers", "4", "--training.no-zero-residual", "--data.seq_len=64", "--minutes", "2"]
    options = parse(["qwq-nano", *flags])
    assert options.recipe.model.num_hidden_layers == 4
    assert not options.recipe.training.zero_residual
    assert options.recipe.data.seq_len == 64
    assert options.minutes == 2.0


def test_an_unknown_flag_names_the_nearest():
    """Before anything else is looked at."""
    with pytest.raises(UsageError, match=r"'--model\.num-hiden-layers'.*'--model\.num-hidden-layers'"):
        parse(["qwq-nano", "--model.num-hiden-layers", "4"])


def test_no_recipe_is_an_error_that_lists_them():
    """`qwq train` alone."""
    with pytest.raises(UsageError, match="qwq-nano"):
        parse([])


@pytest.mark.parametrize("flags", [["--model.hidden-size", "-4"], ["--training.steps", "many"]])
def test_a_wrong_value_exits_with_2(flags, capsys):
    """And names the flag's field."""
    with pytest.raises(SystemExit) as stopped:
        parse(["qwq-nano", *flags])
    assert stopped.value.code == 2
    assert "size" in capsys.readouterr().err or "steps" in flags[0]
