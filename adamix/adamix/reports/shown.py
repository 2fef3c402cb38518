"""Texts of strangers as they are shown: cut, and without signs that steer what is around them."""

import re
from collections.abc import Mapping, Sequence

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def shown(value: object, limit: int = 400) -> str:
    """At most so many characters. Control characters and those that turn the direction of text become one sign."""
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", _plain(value))
    return text if len(text) <= limit else text[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence):
        return ", ".join(_plain(item) for item in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
