"""`adamix recipes`, and how `adamix train --recipe` takes one."""

from typing import Annotated, Any

import typer

from adamix.cli.terminal import JsonFlag, app, exit_codes, print_json, stderr
from adamix.experiments import recipes as known
from adamix.experiments.recipes import Recipe

# Flags of a plain head; a cloze head has none of these.
PLAIN_FLAGS = ("pooling", "dense", "head_dropout", "clip")
# Flags that mean the same thing in two ways: one that is given takes the place of the recipe's other one.
_ALTERNATIVES = {"epochs": "max_steps", "warmup_steps": "warmup_ratio"}


def take_recipe(ctx: typer.Context, name: str | None) -> str | None:
    """Let the recipe's settings be the defaults of the command's flags; runs before any other flag is read."""
    if name is not None and not ctx.resilient_parsing:
        with exit_codes():
            flags = {flag: _spelled(value) for flag, value in known.find(name).settings().items()}
        ctx.default_map = {**(ctx.default_map or {}), **flags}
    return name


RecipeOption = Annotated[
    str | None,
    typer.Option(help="Published settings by name, see `adamix recipes`.", callback=take_recipe, is_eager=True),
]


def is_given(ctx: typer.Context, flag: str) -> bool:
    """Whether the user gave a flag, by the name of its parameter."""
    source = ctx.get_parameter_source(flag)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def is_replaced(ctx: typer.Context, flag: str) -> bool:
    """Whether a setting of the recipe gives way because the user gave the flag that stands for the same thing."""
    other = _ALTERNATIVES[flag]
    return is_given(ctx, other) and not is_given(ctx, flag) and flag in (ctx.default_map or {})


def explain(ctx: typer.Context, recipe: Recipe) -> dict[str, Any]:
    """What a recipe set and what was given instead, for the result of a training; also said on stderr."""
    unread = PLAIN_FLAGS if ctx.params["head"] == "cloze" else ()
    settings = {flag: _spelled(value) for flag, value in recipe.settings().items() if flag not in unread}
    instead = {flag: ctx.params[flag] for flag in settings if is_given(ctx, flag)}
    instead |= {
        other: ctx.params[other] for flag, other in _ALTERNATIVES.items() if flag in settings and is_replaced(ctx, flag)
    }
    taken = {
        flag: value
        for flag, value in settings.items()
        if flag not in instead and not (flag in _ALTERNATIVES and is_replaced(ctx, flag))
    }
    stderr.print(f"recipe {recipe.name}: {_listed(taken)}", soft_wrap=True, markup=False)
    if instead:
        stderr.print(f"given instead: {_listed(instead)}", soft_wrap=True, markup=False)
    return {"name": recipe.name, "settings": taken, "given": instead}


@app.command()
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
                print(f"  {_listed({flag: _spelled(value) for flag, value in recipe.settings().items()})}")
                continue
            for flag, value in recipe.settings().items():
                print(f"  --{flag.replace('_', '-'):20} {_spelled(value)!s:16} {_origin(recipe, flag)}")


def _document(recipe: Recipe) -> dict[str, Any]:
    settings = {
        flag: {"value": _spelled(value), "source": _origin(recipe, flag)} for flag, value in recipe.settings().items()
    }
    return {
        "name": recipe.name,
        "backbone": recipe.backbone,
        "model_type": recipe.model_type,
        "hidden_size": recipe.hidden_size,
        "num_layers": recipe.num_layers,
        "settings": settings,
    }


def _origin(recipe: Recipe, flag: str) -> str:
    return recipe.provenance.get(flag, "release")


def _spelled(value: Any) -> Any:
    """A setting as its flag takes it."""
    return ",".join(value) if isinstance(value, tuple) else value


def _listed(settings: dict[str, Any]) -> str:
    return ", ".join(
        f"{flag.replace('_', '-')} {value:g}" if isinstance(value, float) else f"{flag.replace('_', '-')} {value}"
        for flag, value in settings.items()
    )
