"""Why somebody is not known: causes that metrics and the audit tell apart, and callers do not."""

from typing import Literal, get_args

from adamix.errors import Unauthenticated

RefusalKind = Literal[
    "missing",
    "malformed",
    "mistyped",
    "unknown",
    "wrong_secret",
    "revoked",
    "expired",
    "not_yet",
    "network",
    "tenant_gone",
    "signature",
    "algorithm",
    "issuer",
    "audience",
    "claim",
    "certificate",
]
KINDS: tuple[RefusalKind, ...] = get_args(RefusalKind)


class Refusal(Exception):
    """A credential that does not count. Never leaves the room that judges credentials.

    Attributes:
        kind: of the cause.
        name: of what was shown, as far as that is public: `keys/{id}`, a certificate's name, a token's subject.
    """

    def __init__(self, kind: RefusalKind, name: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.name = name


def unauthenticated() -> Unauthenticated:
    """The one answer to whoever is not known."""
    return Unauthenticated("this server asks for a valid credential, and the call has none", reason="KEY_INVALID")
