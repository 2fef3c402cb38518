"""Which names, digests and request ids there can be, and the words for those that nothing is found under.

The front end, the catalog and the blobs each ask, whoever asked before. Blobs are named by digest; ids become file
names in one place, `catalog/origins.py`, which asks again.
"""

import re

from adamix.errors import FailedPrecondition, InvalidRequest, NotFound

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def is_name(value: str) -> bool:
    """Whether `value` is a tenant or task id."""
    return _NAME.fullmatch(value) is not None and ".." not in value


def check_name(value: str, field: str) -> str:
    """Return `value` if it is a tenant or task id. Raises InvalidRequest."""
    if not is_name(value):
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


def is_digest(value: str) -> bool:
    """Whether `value` is a sha256 in lower-case hex."""
    return _DIGEST.fullmatch(value) is not None


def check_request_id(value: str, field: str = "request_id") -> str:
    """Return `value` if it is an id a client may give a request. Raises InvalidRequest."""
    if _REQUEST_ID.fullmatch(value) is None:
        raise InvalidRequest(
            f"{field} is not a valid id; use 1 to 64 of A-Z a-z 0-9 . _ -", reason="REQUEST_ID_INVALID", field=field
        )
    return value


def task_not_found() -> NotFound:
    """The same for what does not exist and for what another tenant has."""
    return NotFound("task not found")


def tenant_not_found() -> NotFound:
    return NotFound("tenant not found", reason="TENANT_NOT_FOUND")


def version_not_found() -> NotFound:
    return NotFound("version not found")


def adapter_quarantined() -> FailedPrecondition:
    """What is said of a version whose inputs failed again and again: by the engine, and before it is asked."""
    return FailedPrecondition(
        "inputs of this version failed again and again, so it is not run; register another one, or load it to try "
        "again",
        reason="ADAPTER_QUARANTINED",
    )
