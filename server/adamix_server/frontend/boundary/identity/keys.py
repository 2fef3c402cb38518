"""API keys: whether the one that was sent is one that the catalog knows, and counts here and now. Pure.

An id that nobody has costs what a wrong secret costs, so that ids cannot be found by timing.
"""

import hmac
import math
from collections.abc import Callable

from adamix_server.access import api_keys
from adamix_server.access.principal import Principal
from adamix_server.access.refusal import Refusal
from adamix_server.catalog.access import Access, KeyRow
from adamix_server.frontend.boundary.identity.networks import is_within
from adamix_server.frontend.boundary.rooms import Address

PREFIX = "adx_"
# Of keys that were recognised, so many are recognised again without being hashed.
_MOST_KNOWN = 4096
# Of no key: sha256 of nothing that has been sent.
_NO_DIGEST = "0" * 64


class Keys:
    """Recognises keys, and remembers those that counted: most calls show one that was shown a moment ago.

    What is remembered is the key as it was sent, in this process alone, beside the row that it was found right by: once
    the catalog has another row, it is judged anew.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[KeyRow, Principal]] = {}

    def principal_of(self, text: str, access: Access, now_s: float, address: Callable[[], Address | None]) -> Principal:
        """As `principal_of_key`."""
        if (known := self._known.get(text)) is not None:
            row, principal = known
            is_same = access.keys.get(row.id) is row and row.tenant in access.tenants
            if is_same and now_s < principal.expire_time_s:
                return principal
            del self._known[text]
        principal = principal_of_key(text, access, now_s, address)
        row = access.keys[principal.key_id]
        # Where it counts only from some networks, each call's address is looked at.
        if not row.networks:
            if len(self._known) >= _MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[text] = row, principal
        return principal


def principal_of_key(text: str, access: Access, now_s: float, address: Callable[[], Address | None]) -> Principal:
    """Who sends a key.

    Args:
        text: begins as a key does.
        now_s: seconds since 1970 UTC.
        address: of the caller.

    Raises:
        Refusal: the key does not count.
    """
    key = api_keys.parse(text)
    if key is None:
        raise Refusal("mistyped")
    row = access.keys.get(key.id)
    # A key that stands for a certificate has no digest.
    digest = row.digest if row is not None else ""
    is_right = hmac.compare_digest(digest or _NO_DIGEST, key.digest)
    if row is None or not digest:
        raise Refusal("unknown", f"keys/{key.id}")
    if not is_right:
        raise Refusal("wrong_secret", f"keys/{key.id}")
    return principal_of_row(row, access, now_s, address)


def principal_of_row(row: KeyRow, access: Access, now_s: float, address: Callable[[], Address | None]) -> Principal:
    """Who a row of the catalog stands for, as far as it counts now. Raises Refusal."""
    name = f"keys/{row.id}"
    if row.revoke_time_us is not None:
        raise Refusal("revoked", name)
    expire_time_s = math.inf if row.expire_time_us is None else row.expire_time_us / 1e6
    if now_s >= expire_time_s:
        raise Refusal("expired", name)
    if row.tenant not in access.tenants:
        raise Refusal("tenant_gone", name)
    if row.networks and not is_within(address(), row.networks):
        raise Refusal("network", name)
    return Principal(name, row.tenant, row.rights, row.task_pattern, row.id, expire_time_s)
