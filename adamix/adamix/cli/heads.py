"""The flags that describe a head, as its configuration."""

import json
from typing import Any

import typer

from adamix.cli.recipes import PLAIN_FLAGS, is_given
from adamix.config import ClozeConfig, HeadConfig
from adamix.errors import InvalidConfig


def interval(text: str) -> tuple[float, float]:
    """The two numbers of `--clip LOW,HIGH`; which of them go together is the configuration's to check.

    Raises:
        InvalidConfig: it is something else.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InvalidConfig(f"--clip is two numbers, as 0,5, not {text[:40]!r}", field="clip") from None
    return low, high


def cloze_head(ctx: typer.Context, head: str, template: str | None, verbalizer: str | None) -> HeadConfig:
    """The configuration of `--head cloze`. What a recipe says of a plain head does not concern it.

    Raises:
        InvalidConfig: a flag is malformed, or does not belong to the head.
    """
    if head not in ("plain", "cloze"):
        raise InvalidConfig(f"--head must be plain or cloze, not {head[:40]!r}", field="head")
    if head == "plain":
        for name, value in (("template", template), ("verbalizer", verbalizer)):
            if value is not None:
                raise InvalidConfig(f"--{name} is for --head cloze", field=name)
    for flag in PLAIN_FLAGS:
        if is_given(ctx, flag):
            raise InvalidConfig(f"--{flag.replace('_', '-')} is for --head plain", field=flag)
    words = () if verbalizer is None else _words(verbalizer)
    return HeadConfig(cloze=ClozeConfig(template=template, words=words))


def _words(text: str) -> tuple[tuple[str, str], ...]:
    """`label=word,label=word`, or a JSON object where labels have signs of these."""
    malformed = InvalidConfig(
        "--verbalizer is written label=word,label=word or as a JSON object of words by label", field="verbalizer"
    )
    if not text.startswith("{"):
        pairs = [part.partition("=") for part in text.split(",")]
        if not all(label.strip() and separator for label, separator, _ in pairs):
            raise malformed
        return tuple((label.strip(), word.strip()) for label, _, word in pairs)
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise malformed from None
    if not isinstance(found, dict) or not all(isinstance(word, str) for word in found.values()):
        raise malformed
    return tuple(found.items())
