"""Arguments of functions as settings: which were given, whether of the right kind, and how they are written."""

import inspect
import json
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from adamix.errors import InvalidConfig
from adamix.experiments.settings import SETTINGS, Kind, Value

P = ParamSpec("P")
R = TypeVar("R")

Given = Mapping[str, Any]
"""The arguments that a caller gave, by name: a default that nobody spelled out is not among them."""

_NOUNS: Mapping[Kind, str] = {"integer": "a whole number", "number": "a number", "switch": "True or False"}


def telling_given(function: Callable[Concatenate[Given, P], R]) -> Callable[P, R]:
    """A function that is told, before its arguments, which of them were given: a recipe gives way to those alone."""
    signature = inspect.signature(function)
    shown = signature.replace(parameters=list(signature.parameters.values())[1:])

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(shown.bind(*args, **kwargs).arguments, *args, **kwargs)

    call.__signature__ = shown  # type: ignore[attr-defined]  # what `inspect.signature` and editors show
    return call


def as_settings(given: Given) -> dict[str, Value]:
    """Those of the arguments that are settings, as settings are written; None leaves one open.

    Raises:
        InvalidConfig: one is of another kind than its setting.
    """
    named = {name: value for name, value in given.items() if name in SETTINGS and value is not None}
    return {name: _written(name, value) for name, value in named.items()}


def _written(name: str, value: Any) -> Value:
    """A value as its setting is written: sites as `attn_q,attn_v`, an interval as `0,5`, words by label as JSON."""
    kind = SETTINGS[name].kind
    if kind == "switch" and isinstance(value, bool):
        return value
    if kind == "integer" and not isinstance(value, bool) and hasattr(value, "__index__"):
        return operator.index(value)
    if kind == "number" and not isinstance(value, bool | str) and hasattr(value, "__float__"):
        return float(value)
    if kind == "text":
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, Mapping):
            return json.dumps(dict(value))
        if isinstance(value, Sequence) and not isinstance(value, str | bytes):
            return ",".join(str(part) for part in value) or "none"
        if isinstance(value, str):
            return value
    raise InvalidConfig(f"{name} must be {_NOUNS.get(kind, 'a text')}, not {value!r:.40}", field=name)
