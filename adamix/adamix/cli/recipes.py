"""`adamix recipes`, and how a training tells of one."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from adamix.cli.terminal import JsonFlag, exit_codes, print_json, stderr
from adamix.experiments import recipes as known
from adamix.experiments.recipes import Recipe, Settled
from adamix.experiments.settings import Value, flag_of


def explain(settled: Settled) -> None:
    """Say on stderr what a recipe set and what was given instead."""
    stderr.print(f"recipe {settled.recipe.name}: {_listed(settled.taken)}", soft_wrap=True, markup=False)
    if settled.instead:
        stderr.print(f"given instead: {_listed(settled.instead)}", soft_wrap=True, markup=False)


def recipes(
    name: Annotated[str | None, typer.Argument(help="One of them, with each of its settings.")] = None,
    json_: JsonFlag = False,
) -> None:
    """List the published settings that `train --recipe` takes, and where they are from."""
    with exit_codes():
        found = list(known.RECIPES.values()) if name is None else [known.find(name)]
        if json_:
            print_json({"recipes": [_document(recipe) for recipe in found]})
            return
        for recipe in found:
            print(f"{recipe.name}: {recipe.backbone} ({recipe.num_layers} layers of {recipe.hidden_size})")
            if name is None:
                print(f"  {_listed(recipe.settings())}")
                continue
            for setting, value in recipe.settings().items():
                print(f"  --{flag_of(setting):20} {value!s:16} {_origin(recipe, setting)}")


def _document(recipe: Recipe) -> dict[str, Any]:
    settings = {name: {"value": value, "source": _origin(recipe, name)} for name, value in recipe.settings().items()}
    return {
        "name": recipe.name,
        "backbone": recipe.backbone,
        "model_type": recipe.model_type,
        "hidden_size": recipe.hidden_size,
        "num_layers": recipe.num_layers,
        "settings": settings,
    }


def _origin(recipe: Recipe, setting: str) -> str:
    return recipe.provenance.get(setting, "release")


def _listed(settings: Mapping[str, Value]) -> str:
    return ", ".join(
        f"{flag_of(name)} {value:g}" if isinstance(value, float) else f"{flag_of(name)} {value}"
        for name, value in settings.items()
    )
