"""Which names and digests the catalog accepts. Checked here again, whoever checked before.

Names never become file names (blobs are named by digest), so this is the second wall, not the only one.
"""

import re

from adamix.errors import InvalidRequest

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_name(value: str, field: str) -> str:
    """Return `value` if it is a tenant or task id. Raises InvalidRequest."""
    if _NAME.fullmatch(value) is None or ".." in value:
        raise InvalidRequest(
            f"{field} is not a valid id; use 1 to 63 of a-z 0-9 . _ - that start and end with a letter or digit",
            reason="ID_INVALID",
            field=field,
        )
    return value


def check_digest(value: str, field: str = "digest") -> str:
    """Return `value` if it is a sha256 in lower-case hex. Raises InvalidRequest."""
    if _DIGEST.fullmatch(value) is None:
        raise InvalidRequest(f"{field} is not a sha256 in lower-case hex", reason="DIGEST_INVALID", field=field)
    return value
