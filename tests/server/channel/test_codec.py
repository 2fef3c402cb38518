"""Frames as bytes: nothing is lost on the way, and only what may come from a side is taken from it."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from adamix_server.access.entries import Entry
from adamix_server.access.leases import Ask, Flow, Loan
from adamix_server.access.sums import Sums
from adamix_server.channel.codec import Codec, NotAFrame, from_child, from_engine, to_child, to_engine
from adamix_server.channel.engine_frames import Cancel, Control, Credit, Emit, Event, Reply, Row, Submit
from adamix_server.channel.pipe import SupervisorPipe, pack
from adamix_server.channel.supervisor_frames import (
    Account,
    Agreed,
    Asks,
    Drain,
    Drained,
    DrainWanted,
    EngineDown,
    Fatal,
    Loans,
    Refresh,
    Seen,
    Stats,
)
from adamix_testing.harness import start_front_end

ENGINE_ID = "0"
ROW = Row(id=2**63, tenant="default", digest="a" * 64, token_ids=b"\x00\xff" * 4, deadline=1.5, type_ids=b"")


def _ask(limit: Flow | int) -> Ask:
    return Ask(tenant="a", quota="q", limit=limit, number=1, first=0.5, more=2.0**62, returned=1.0)


DIRECTIONS: dict[str, tuple[Codec[Any], list[Any]]] = {
    "to an engine": (
        to_engine,
        [
            Submit(engine_id=ENGINE_ID, generation=3, rows=[ROW]),
            Cancel(engine_id=ENGINE_ID, generation=3, ids=[2**63]),
            Control(engine_id=ENGINE_ID, generation=3, call=1, op="pins"),
        ],
    ),
    "from an engine": (
        from_engine,
        [
            Emit(engine_id=ENGINE_ID, generation=3, events=[Event(id=1, payload=b"\x00\xff")]),
            Credit(engine_id=ENGINE_ID, generation=3, inputs=1, tokens=2),
            Reply(engine_id=ENGINE_ID, generation=3, call=1, value=["a"]),
        ],
    ),
    "to a child": (
        to_child,
        [
            start_front_end(Path("store"), Path("tokenizer.json")),
            EngineDown(engine_id=ENGINE_ID, generation=3),
            Refresh(revision=4),
            Agreed(revision=4, oldest=3),
            Loans(loans=[Loan(tenant="a", quota="concurrent_calls", number=7, lent=2.0, opens_at=1.5)]),
            Drain(delay_s=0.5, grace_s=1),
        ],
    ),
    "from a child": (
        from_child,
        [
            Fatal(message="no"),
            Seen(revision=4, oldest=3),
            Asks(asks=[_ask(Flow(2.0**62, 2.0**63)), _ask(2**62)]),
            DrainWanted(),
            Drained(),
            Stats(samples=[]),
            Account(
                entries=[Entry.of(5, tenant="acme", detail="é")],
                usage=[Sums(tenant="acme", calls=1, rejected={"QUEUE_FULL": 2})],
                keys={"abcdefghijkl": "2026-11-30"},
            ),
        ],
    ),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_frames_survive_the_wire_and_no_other_direction_takes_them(direction: str) -> None:
    codec, frames = DIRECTIONS[direction]
    for frame in frames:
        data = codec.encode(frame)
        assert codec.decode(data) == frame
        for name, (other, _) in DIRECTIONS.items():
            if name != direction:
                with pytest.raises(NotAFrame):
                    other.decode(data)


@pytest.mark.parametrize(
    ("codec", "kind"),
    [
        (to_engine, "Submit"),
        (to_engine, "Cancel"),
        (to_engine, "Control"),
        (from_engine, "Emit"),
        (from_engine, "Credit"),
        (from_engine, "Reply"),
        (to_child, "EngineDown"),
    ],
)
def test_a_frame_that_names_no_engine_is_refused(codec: Codec[Any], kind: str) -> None:
    # Every frame is about one engine; none is taken for the first one because its sender forgot to say.
    rest = {"rows": [], "ids": [], "events": [], "inputs": 1, "tokens": 1, "call": 1, "op": "load"}
    with pytest.raises(msgspec.ValidationError, match="engine_id"):
        codec.decode(msgspec.msgpack.encode({"type": kind, "generation": 1, **rest}))
    codec.decode(msgspec.msgpack.encode({"type": kind, "generation": 1, "engine_id": ENGINE_ID, **rest}))


@pytest.mark.parametrize("data", [b"", b"\xc1", from_child.encode(Drained())])
def test_a_supervisor_that_says_what_is_no_frame_is_as_good_as_gone(data: bytes) -> None:
    child_reads, we_write = os.pipe()
    we_read, child_writes = os.pipe()
    pipe = SupervisorPipe(child_reads, child_writes)
    refresh = Refresh(revision=7)
    try:
        os.write(we_write, pack(to_child.encode(refresh)) + pack(data))
        assert pipe.receive_blocking() == refresh
        assert pipe.receive_blocking() is None
    finally:
        for end in (child_reads, we_write, we_read, child_writes):
            os.close(end)
