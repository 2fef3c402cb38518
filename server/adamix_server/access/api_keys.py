"""API keys: `adx_<id>_<secret>`.

The id (12 characters) is public: it stands in logs and lists. The secret is 32 random bytes in base62 and six
characters of checksum over all before them, by which a scanner or a person tells a mistyped key from a wrong one,
offline. Only the sha256 of a key is stored: it has 256 random bits, so nothing slower is needed.
"""

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass

_ID_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_CHARS = 12
_RANDOM_BYTES = 32
# 62 ** 43 > 2 ** 256; 62 ** 6 > 2 ** 32.
_RANDOM_CHARS, _CHECK_CHARS = 43, 6
_KEY = re.compile(
    rf"adx_([{_ID_LETTERS}]{{{ID_CHARS}}})_([0-9A-Za-z]{{{_RANDOM_CHARS}}})([0-9A-Za-z]{{{_CHECK_CHARS}}})"
)
_ID = re.compile(rf"[{_ID_LETTERS}]{{{ID_CHARS}}}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that is well formed, whether or not anybody has it.

    Attributes:
        id: public.
        digest: sha256 of the whole key, in hex.
    """

    id: str
    digest: str


def make() -> tuple[str, ApiKey]:
    """A new key, as it is sent, and what is stored of it."""
    key_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(ID_CHARS))
    random = _base62(int.from_bytes(secrets.token_bytes(_RANDOM_BYTES)), _RANDOM_CHARS)
    text = f"adx_{key_id}_{random}"
    text += _checksum(text)
    return text, _read(key_id, text)


def parse(text: str) -> ApiKey | None:
    """The key that `text` is; None if it is none, or was mistyped."""
    found = _KEY.fullmatch(text)
    if found is None or _checksum(text[:-_CHECK_CHARS]) != found[3]:
        return None
    return _read(found[1], text)


def is_id(text: str) -> bool:
    """Whether `text` is what a key's id looks like."""
    return _ID.fullmatch(text) is not None


def _read(key_id: str, text: str) -> ApiKey:
    return ApiKey(key_id, hashlib.sha256(text.encode("ascii")).hexdigest())


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode("ascii")), _CHECK_CHARS)


def _base62(number: int, length: int) -> str:
    letters = []
    for _ in range(length):
        number, rest = divmod(number, len(_LETTERS))
        letters.append(_LETTERS[rest])
    return "".join(reversed(letters))
