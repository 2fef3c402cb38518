"""Texts that are written down, of which no secret may be a part: what a caller wrote where a name belongs may be its
key. Pure."""

import re

# What comes after the public id of a key, whole or not; and a signed token, of which nothing is public.
_KEY = re.compile(r"(adx_(?:[a-z2-7]{12}_)?)\w+")
_TOKEN = re.compile(r"eyJ[\w-]*(\.[\w-]*){0,2}")


def without_secrets(text: str) -> str:
    """`text`, in which of a key no more is left than its id, and of a token nothing."""
    if "adx_" in text or "eyJ" in text:
        text = _TOKEN.sub("eyJ…", _KEY.sub(r"\1…", text))
    return text
