"""The keys of an issuer of tokens, from its JWKS file.

Each key has one algorithm, by what it is, so that no token has a say in it. Knows no token and no wire.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from adamix_server.trust.files import read, wrong

log = logging.getLogger(__name__)

FLAG = "--jwt-jwks"
# Of a key's kind and curve.
_ALGORITHMS = {("RSA", None): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
_LEAST_RSA_BITS = 2048
# Nothing private is taken out of the file, should it be in there.
_PUBLIC = ("kty", "crv", "n", "e", "x", "y")


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key, its name in the file (empty for none) and the one algorithm that it verifies."""

    id: str
    algorithm: str
    key: Any


def read_jwks(path: Path) -> tuple[VerificationKey, ...]:
    """The keys that can be used; others are said in the log.

    Raises:
        InvalidConfig: the file cannot be read, is no JWKS, or has no key that can be used (`TRUST_FILE_INVALID`).
    """
    try:
        document = json.loads(read(path, FLAG))
    except (ValueError, RecursionError):
        raise wrong(FLAG, f"{path} is not JSON") from None
    entries = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise wrong(FLAG, f'{path} is no JWKS: it has no list "keys"')
    keys = []
    for number, entry in enumerate(entries):
        if isinstance(found := _key(entry), VerificationKey):
            keys.append(found)
        else:
            log.warning("a key of the JWKS is left out: %s", found, extra={"number": number})
    if not keys:
        raise wrong(FLAG, f"{path} has no key for RS256 (2,048 bits or more), ES256 or EdDSA")
    return tuple(keys)


def _key(entry: Any) -> VerificationKey | str:
    """The key, or what speaks against it."""
    if not isinstance(entry, dict):
        return "it is no object"
    if entry.get("use", "sig") != "sig":
        return "it is not for signatures"
    kind, curve = entry.get("kty"), entry.get("crv")
    algorithm = _ALGORITHMS.get((kind, curve)) if isinstance(kind, str) and isinstance(curve, str | None) else None
    if algorithm is None or entry.get("alg", algorithm) != algorithm:
        return "its algorithm is none of RS256, ES256, EdDSA"
    try:
        key = jwt.PyJWK.from_dict({name: entry[name] for name in _PUBLIC if name in entry}, algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError):
        return "it is damaged"
    if isinstance(key, RSAPublicKey) and key.key_size < _LEAST_RSA_BITS:
        return f"it has fewer than {_LEAST_RSA_BITS} bits"
    name = entry.get("kid", "")
    return VerificationKey(name if isinstance(name, str) else "", algorithm, key)
