"""Errors about one of many texts, in the words of whoever gave them: `text 3 is empty`, not `inputs[2].text`. Pure."""

import re

from adamix_client.errors import AdamixError

_FIELD = re.compile(r"inputs\[(\d+)\](?:\.(text|pair(?:\.first|\.second)?|token_ids))?")
_ANY = re.compile(r"inputs\[\d+\](?:\.(?:text|pair(?:\.first|\.second)?|token_ids))?")
_SUBJECT = re.compile(r"(?:the )?(?:text|token_ids)\b")


def place_of(error: AdamixError) -> int | None:
    """Which input of its call an error is about, from 0; None if it is about none."""
    found = re.match(r"inputs\[(\d+)\]", error.field or "")
    return None if found is None else int(found[1])


def reword(error: AdamixError, index: int | None, noun: str = "text") -> AdamixError:
    """The error, about the input at `index` of all that its caller gave.

    Its field stays the wire's, with that index. People count from one: the input at 2 is `text 3`. With None for the
    index there was only one.
    """
    said = _FIELD.fullmatch(error.field or "")
    if said is None:
        if index is not None and (place := place_of(error)) is not None:
            error.field = (error.field or "").replace(f"inputs[{place}]", f"inputs[{index}]", 1)
        return error
    name = f"the {noun}" if index is None else f"{noun} {index + 1}"
    part = f"the {said[2].rpartition('.')[2]} of {name}" if said[2] and said[2].startswith("pair.") else name
    message = error.message
    if _ANY.search(message):
        message = _ANY.sub(part, message)
    elif _SUBJECT.match(message):
        message = _SUBJECT.sub(part, message, count=1)
    else:
        message = f"{part}: {message}"
    error.message = message
    error.args = (message,)
    if index is not None:
        error.field = (error.field or "").replace(f"inputs[{said[1]}]", f"inputs[{index}]", 1)
    return error
