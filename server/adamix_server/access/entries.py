"""What is written down of a call: one entry of the audit, on its way from a front end to the catalog.

Whoever makes one says it with `Entry.of`, which takes nothing that is longer than an entry holds, no character that is
not printed, and no secret: what a caller wrote where a name belongs may be its key. Pure.
"""

import msgspec

from adamix_server.access.redaction import without_secrets

# Of each text of an entry; what is longer is cut.
MAX_NAME_CHARS = 256
MAX_DETAIL_CHARS = 512
_MAX_CHARS = {
    "tenant": 63,
    "principal": MAX_NAME_CHARS,
    "peer": 64,
    "method": 128,
    "resource": MAX_DETAIL_CHARS,
    "digest": 64,
    "code": 24,
    "reason": 64,
    "detail": MAX_DETAIL_CHARS,
}


class Entry(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One call, or several that ended alike; or what was done on a stopped server.

    Attributes:
        time_us: microseconds since 1970 UTC.
        tenant: whose matter it is; empty where nobody knows.
        principal: who called: `keys/{id}`, a certificate's name, a token's subject; empty for nobody known.
        peer: address it called from; empty for this machine's own commands.
        method: as it was called, e.g. `adamix.v1.AdapterService/SetTraffic`; or the command.
        resource: name of what was asked for or changed.
        code, reason: how it ended.
        detail: for people.
    """

    time_us: int
    tenant: str = ""
    principal: str = ""
    peer: str = ""
    method: str = ""
    resource: str = ""
    digest: str = ""
    code: str = "OK"
    reason: str = ""
    detail: str = ""

    @classmethod
    def of(cls, time_us: int, **texts: str) -> "Entry":
        """An entry of these texts, as far as they can be written down."""
        return cls(time_us=time_us, **{name: to_printable(text, _MAX_CHARS[name]) for name, text in texts.items()})


def to_printable(text: str, max_chars: int) -> str:
    """`text` without secrets, on one line and no longer than that."""
    if len(text) > max_chars or not text.isascii() or not text.isprintable() or "adx_" in text or "eyJ" in text:
        # Before it is cut: half a secret is one.
        text = without_secrets(text)
        text = "".join(letter if letter.isprintable() else "?" for letter in text[: max_chars + 1])
        if len(text) > max_chars:
            text = text[: max_chars - 1] + "…"
    return text
