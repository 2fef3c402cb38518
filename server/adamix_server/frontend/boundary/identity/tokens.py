"""Tokens of an issuer (JWT): whether its signature is right, and what it says is for this server, now.

The algorithm is that of the issuer's key (`trust/jwks.py`), never the token's own word, and no key is taken from a
token. A token that was verified is remembered by its sha256: what depends on the time is asked of it all the same.
"""

import hashlib
import logging
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from adamix_server.access.principal import Principal
from adamix_server.access.refusal import Refusal, RefusalKind
from adamix_server.access.rights import RIGHTS, Right
from adamix_server.catalog.access import Access
from adamix_server.config import DEFAULT_TENANT, AccessSettings
from adamix_server.trust.jwks import VerificationKey

log = logging.getLogger(__name__)

# By which the clocks of issuer and server may differ.
LEEWAY_S = 30.0
MAX_REMEMBERED = 4_096
_MAX_NAME_CHARS = 128
# A key's name in the header says which of them; without one, those of the algorithm are tried.
_MAX_TRIED = 8
# They are looked at here: with a clock of our own, and each for a cause of its own.
_WITHOUT_CLAIMS: Any = {f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}


@dataclass(frozen=True, slots=True)
class _Verified:
    """What a token says, whenever it is asked."""

    principal: Principal
    begin_time_s: float


class Tokens:
    """Verifies tokens.

    Attributes:
        keys: of the issuer, now. Others forget what was verified with these.
    """

    def __init__(self, settings: AccessSettings, keys: tuple[VerificationKey, ...]) -> None:
        self._settings = settings
        self._keys = keys
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    @property
    def keys(self) -> tuple[VerificationKey, ...]:
        return self._keys

    @keys.setter
    def keys(self, keys: tuple[VerificationKey, ...]) -> None:
        self._keys = keys
        self._verified.clear()

    def principal_of(self, token: str, access: Access, now_s: float) -> Principal:
        """Who sends a token.

        Args:
            token: of three parts; ASCII.
            now_s: seconds since 1970 UTC.

        Raises:
            Refusal: the token does not count.
        """
        digest = hashlib.sha256(token.encode("ascii")).digest()
        verified = self._verified.get(digest)
        if verified is None:
            verified = self._verify(token)
            self._verified[digest] = verified
            if len(self._verified) > MAX_REMEMBERED:
                self._verified.popitem(last=False)
        else:
            self._verified.move_to_end(digest)
        principal = verified.principal
        if now_s >= principal.expire_time_s:
            del self._verified[digest]
            raise Refusal("expired", principal.name)
        if now_s < verified.begin_time_s:
            raise Refusal("not_yet", principal.name)
        if principal.tenant not in access.tenants:
            raise Refusal("tenant_gone", principal.name)
        return principal

    def _verify(self, token: str) -> _Verified:
        claims = self._claims(token)
        name = _name(claims)
        if claims.get("iss") != self._settings.jwt_issuer:
            raise Refusal("issuer", name)
        audience = claims.get("aud")
        if self._settings.jwt_audience not in (audience if isinstance(audience, list) else [audience]):
            raise Refusal("audience", name)
        expire_time_s, begin_time_s = _seconds(claims, "exp", name), _seconds(claims, "nbf", name)
        tenant = claims.get(self._settings.jwt_tenant_claim)
        if not isinstance(tenant, str) or not tenant:
            raise Refusal("claim", name)
        scope = claims.get("scope", "")
        if not isinstance(scope, str):
            raise Refusal("claim", name)
        principal = Principal(name, tenant, _rights(scope, tenant), expire_time_s=expire_time_s + LEEWAY_S)
        return _Verified(principal, begin_time_s - LEEWAY_S)

    def _claims(self, token: str) -> Mapping[str, Any]:
        """What a token says whose signature is right."""
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Refusal("malformed") from None
        # Extensions that must be understood: none is.
        if "crit" in header or header.get("b64", True) is not True:
            raise Refusal("malformed")
        key_id = header.get("kid")
        named = [key for key in self._keys if key_id is None or key.id == key_id]
        if not named:
            raise Refusal("unknown")
        fitting = [key for key in named if key.algorithm == header.get("alg")][:_MAX_TRIED]
        refused: RefusalKind = "algorithm"
        for key in fitting:
            try:
                claims = jwt.decode(token, key.key, algorithms=[key.algorithm], options=_WITHOUT_CLAIMS)
            except jwt.InvalidSignatureError:
                refused = "signature"
            except (jwt.PyJWTError, ValueError, RecursionError):
                raise Refusal("malformed") from None
            else:
                return claims
        raise Refusal(refused)


def _name(claims: Mapping[str, Any]) -> str:
    """The subject, as it may stand in a log."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject.isprintable():
        return "tokens/?"
    return f"tokens/{subject[:_MAX_NAME_CHARS]}"


def _seconds(claims: Mapping[str, Any], claim: str, name: str) -> float:
    """A time in seconds since 1970 UTC, which is required."""
    value = claims.get(claim)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal("claim", name)
    try:
        seconds = float(value)
    except OverflowError:
        raise Refusal("claim", name) from None
    if not math.isfinite(seconds):
        raise Refusal("claim", name)
    return seconds


def _rights(scope: str, tenant: str) -> frozenset[Right]:
    """The rights among the words of a scope.

    `admin` counts only for the operator's own tenant: issuers grant scopes to whoever asks for them more easily than
    they let somebody be another tenant.
    """
    words = set(scope.split(" "))
    return frozenset(right for right in RIGHTS if right in words and (right != "admin" or tenant == DEFAULT_TENANT))
