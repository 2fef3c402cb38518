"""Which frames go which way between processes, and their bytes.

A frame that comes from the wrong side is refused when it is decoded, as bytes that are no frame are: nobody has to
think of what a peer cannot say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from adamix_server.channel.engine_frames import (
    Cancel,
    Control,
    Credit,
    Emit,
    Hello,
    Quarantined,
    Reply,
    Submit,
    TenantShares,
)
from adamix_server.channel.supervisor_frames import (
    Account,
    Agreed,
    Asks,
    Beat,
    Drain,
    Drained,
    DrainWanted,
    EngineDown,
    EngineMoving,
    EngineStalled,
    EngineUp,
    Fatal,
    Health,
    Loans,
    Ready,
    Refresh,
    Seen,
    StartEngine,
    StartFrontEnd,
    Stats,
)

# Front end -> engine, and back.
ToEngine = Submit | Cancel | Control | TenantShares
FromEngine = Hello | Emit | Credit | Reply | Quarantined

# Supervisor -> child, and back: words, and what is counted, which is made when it is sent.
ToChild = (
    StartEngine
    | StartFrontEnd
    | EngineUp
    | EngineDown
    | EngineStalled
    | EngineMoving
    | Refresh
    | Agreed
    | Loans
    | Drain
)
Word = Ready | Fatal | Beat | Seen | Asks | Health | DrainWanted | Drained
FromChild = Word | Stats | Account

F = TypeVar("F")

# What `decode` raises: msgspec.DecodeError, or ValidationError for a frame of another direction.
NotAFrame = msgspec.MsgspecError


@dataclass(frozen=True)
class Codec(Generic[F]):
    """The frames of one direction as bytes, and back. `decode` raises NotAFrame."""

    encode: Callable[[F], bytes]
    decode: Callable[[bytes], F]


def _to_plain(value: object) -> str:
    """Paths travel as text."""
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError


def _from_plain(kind: type, value: str) -> object:
    return kind(value)


_encode = msgspec.msgpack.Encoder(enc_hook=_to_plain).encode
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)
_to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild, dec_hook=_from_plain)
_from_child: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)

to_engine: Codec[ToEngine] = Codec(_encode, _to_engine.decode)
from_engine: Codec[FromEngine] = Codec(_encode, _from_engine.decode)
to_child: Codec[ToChild] = Codec(_encode, _to_child.decode)
from_child: Codec[FromChild] = Codec(_encode, _from_child.decode)
