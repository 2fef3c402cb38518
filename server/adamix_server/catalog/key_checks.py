"""What a key may be. Everything here comes from callers."""

import fnmatch
import ipaddress
import re
from collections.abc import Collection

from adamix.errors import InvalidRequest
from adamix_server.access.redaction import without_secrets
from adamix_server.access.rights import Right, check_rights
from adamix_server.limits.tenants import (
    MAX_CERTIFICATE_NAME_CHARS,
    MAX_DISPLAY_NAME_CHARS,
    MAX_KEY_NETWORKS,
    MAX_TASK_PATTERN_CHARS,
)

# What ids are made of, and what stands for some of it.
_PATTERN = re.compile(r"[a-z0-9._\-*?\[\]!]*")
# The longest network as text: IPv6 with an IPv4 address at its end, and its length.
_MAX_NETWORK_CHARS = 49
# 9999-12-31, the last day that a timestamp on the wire and a `datetime` can say.
_MAX_TIME_US = 253_402_300_799 * 1_000_000


def check_key_rights(rights: Collection[Right]) -> frozenset[Right]:
    """Raises InvalidRequest: none (`RIGHTS_EMPTY`), or what is no right (`RIGHT_UNKNOWN`)."""
    if not rights:
        raise InvalidRequest("a key needs a right; say a role or rights", reason="RIGHTS_EMPTY", field="rights")
    return check_rights(rights)


def check_task_pattern(pattern: str) -> str:
    """Raises InvalidRequest (`TASK_PATTERN_INVALID`)."""
    if len(pattern) > MAX_TASK_PATTERN_CHARS or _PATTERN.fullmatch(pattern) is None or not _is_pattern(pattern):
        raise InvalidRequest(
            f"task_pattern is not valid; use at most {MAX_TASK_PATTERN_CHARS} of a-z 0-9 . _ - and * ? [ ] !",
            reason="TASK_PATTERN_INVALID",
            field="task_pattern",
        )
    return pattern


def check_networks(networks: Collection[str]) -> tuple[str, ...]:
    """The networks in their shortest form, each once. Raises InvalidRequest (`NETWORK_INVALID`)."""
    if len(networks) > MAX_KEY_NETWORKS:
        raise InvalidRequest(
            f"networks: at most {MAX_KEY_NETWORKS}, not {len(networks)}", reason="NETWORK_INVALID", field="networks"
        )
    return tuple(dict.fromkeys(_check_network(text, f"networks[{at}]") for at, text in enumerate(networks)))


def check_display_name(name: str) -> str:
    """Raises InvalidRequest (`DISPLAY_NAME_INVALID`)."""
    return _check_text(name, "display_name", MAX_DISPLAY_NAME_CHARS, "DISPLAY_NAME_INVALID")


def check_certificate_name(name: str) -> str:
    """Raises InvalidRequest (`CERTIFICATE_NAME_INVALID`)."""
    return _check_text(name, "certificate_name", MAX_CERTIFICATE_NAME_CHARS, "CERTIFICATE_NAME_INVALID")


def check_expire_time(expire_time_us: int | None, now_us: int) -> int | None:
    """Raises InvalidRequest (`EXPIRE_TIME_INVALID`): in the past, or after the year 9999."""
    if expire_time_us is not None and not now_us < expire_time_us <= _MAX_TIME_US:
        raise InvalidRequest(
            "expire_time must be in the future, and before the year 10000",
            reason="EXPIRE_TIME_INVALID",
            field="expire_time",
        )
    return expire_time_us


def _is_pattern(pattern: str) -> bool:
    try:
        re.compile(fnmatch.translate(pattern))
    except re.error:
        return False
    return True


def _check_network(text: str, field: str) -> str:
    try:
        # A scope (`%eth0`) is a matter of one machine, and is never part of a peer's address here.
        if len(text) <= _MAX_NETWORK_CHARS and "%" not in text:
            return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    raise InvalidRequest(
        f"{field} is no network in CIDR notation, such as 10.0.0.0/8; the bits after its length must be 0",
        reason="NETWORK_INVALID",
        field=field,
    )


def _check_text(text: str, field: str, max_chars: int, reason: str) -> str:
    # It stands in lists: whoever writes a key here has mistaken the field.
    if len(text) > max_chars or not text.isprintable() or without_secrets(text) != text:
        raise InvalidRequest(
            f"{field} must be at most {max_chars:,} printable characters, and no key", reason=reason, field=field
        )
    return text
