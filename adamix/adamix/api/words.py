"""Errors in the words of whoever calls a function: an argument's name where a command says its flag."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from adamix.errors import AdamixError
from adamix.experiments.settings import SETTINGS

_RESUME = re.compile(r"--resume\b")
_FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")


@contextmanager
def named_as_arguments() -> Iterator[None]:
    """An error whose message names flags is raised with the names of arguments; commands to type stay as they are."""
    try:
        yield
    except AdamixError as error:
        message, field = in_words_of_python(error.message), _argument_of(error.field)
        if (message, field) == (error.message, error.field):
            raise
        renamed = type(error)(message, reason=error.reason, field=field, retry_after_s=error.retry_after_s)
        raise renamed.with_traceback(error.__traceback__) from None


def in_words_of_python(message: str) -> str:
    """`--lora-dropout` as `lora_dropout`, but for what stands between backticks; so too a setting that comes first."""
    first, space, rest = message.partition(" ")
    if first.replace("-", "_") in SETTINGS:
        message = first.replace("-", "_") + space + rest
    parts = message.split("`")
    parts[::2] = [_FLAG.sub(_argument, _RESUME.sub("resume=True", part)) for part in parts[::2]]
    return "`".join(parts)


def _argument(flag: re.Match[str]) -> str:
    return flag[1].replace("-", "_")


def _argument_of(field: str | None) -> str | None:
    """The argument that a field of a configuration is set by: `kind` is `method`."""
    if field in SETTINGS:
        return field
    return next((name for name, setting in SETTINGS.items() if setting.field == field), field)
