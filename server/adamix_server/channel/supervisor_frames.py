"""The frames between the supervisor and its children: plain data, tagged, msgpack on the pipe.

A child is told its part (`StartEngine`, `StartFrontEnd`), says that it is `Ready` or that it cannot be (`Fatal`), and
ends with `Drain` and `Drained`. Which frames go which way is said in `codec.py`.

Each says how things stand: where the other side does not read, of each kind only the newest waits for it (`outbox.py`).
Those about quotas say what was lent and given back: two of them wait as one.
"""

from pathlib import Path

import msgspec

from adamix_server.access.entries import Entry
from adamix_server.access.leases import Ask, Loan, joined
from adamix_server.access.sums import Sums
from adamix_server.channel.engine_frames import Frame, Hello
from adamix_server.config import EngineSettings, FrontEndSettings, LogLevel


class Start(Frame, frozen=True, kw_only=True):
    """Supervisor -> child, first: what it needs to know beside its settings.

    `tokenizer` is the path of the `tokenizer.json` without truncation and padding, which the engine writes and front
    ends read.
    """

    store: Path
    tokenizer: Path
    log_level: LogLevel


class StartEngine(Start, frozen=True, kw_only=True):
    """`address` is where to answer, `front_ends` among how many the queue's room is shared."""

    settings: EngineSettings
    engine_id: str
    generation: int
    address: str
    front_ends: int


class StartFrontEnd(Start, frozen=True, kw_only=True):
    """`name` stands in its log lines; `shares_port` says that others bind `listen` too, by SO_REUSEPORT, and `http`.

    It is that of this `number`, from 0 on, of so many `front_ends`. `http` is where to answer over HTTP, if anywhere;
    `metrics_address` is where the supervisor gives the page of metrics, alike.
    """

    settings: FrontEndSettings
    name: str
    listen: str
    reflection: bool
    shares_port: bool
    number: int = 0
    front_ends: int = 1
    http: str = ""
    metrics_address: str = ""


class Ready(Frame, frozen=True):
    """Child -> supervisor: I serve. The engine sends its Hello, a front end the addresses it bound."""

    address: str = ""
    hello: Hello | None = None
    http: str = ""


class Fatal(Frame, frozen=True):
    """Child -> supervisor: I cannot start, and starting me again will not help. Shown to the operator."""

    message: str


class EngineUp(Frame, frozen=True):
    """Supervisor -> front end: connect here. Sent at start and after every engine restart."""

    address: str
    hello: Hello


class EngineDown(Frame, frozen=True):
    """Supervisor -> front end: this generation of this engine is gone; fail what waits for it.

    `back_at` is when the next one will serve, going by how long the last one took to start; 0 if nobody knows.
    """

    generation: int
    engine_id: str
    back_at: float = 0.0


class EngineStalled(Frame, frozen=True):
    """Supervisor -> front end: this engine stands still since `since`; refuse new work, and leave what waits for it.

    Unless it moves again (`EngineMoving`), it is killed (`EngineDown`), and the next one will serve at `back_at`.
    """

    generation: int
    engine_id: str
    since: float
    back_at: float


class EngineMoving(Frame, frozen=True):
    """Supervisor -> front end: this engine, which stood still, goes on."""

    generation: int
    engine_id: str


class Beat(Frame, frozen=True):
    """Engine -> supervisor, some times in the time after which it counts as stalled, whatever its loop is doing.

    `last_step` is when the loop last came to the end of a step.
    """

    last_step: float


class Seen(Frame, frozen=True, kw_only=True):
    """Front end -> supervisor: the catalog revision it serves, and the oldest that a running call of it still uses.

    The first one makes a front end a party to every agreement; it is sent before the port is bound.
    """

    revision: int
    oldest: int


class Refresh(Frame, frozen=True, kw_only=True):
    """Supervisor -> front end: the catalog has reached this revision; read it and say `Seen`."""

    revision: int


class Agreed(Frame, frozen=True, kw_only=True):
    """Supervisor -> front end: the smallest `revision` and the smallest `oldest` among all live front ends."""

    revision: int
    oldest: int


class Asks(Frame, frozen=True):
    """Front end -> supervisor: what it needs of tenants' quotas, and gives back of them (`access/leases.py`).

    Two of them are one with both; of each quota it has one entry.
    """

    asks: list[Ask]

    def over(self, earlier: "Asks") -> "Asks":
        """Both as one frame."""
        return Asks(asks=joined(earlier.asks, self.asks))


class Loans(Frame, frozen=True):
    """Supervisor -> front end: what it may use of tenants' quotas from now on, or that there is nothing.

    Two of them are one with both; of each quota it has one entry.
    """

    loans: list[Loan]

    def over(self, earlier: "Loans") -> "Loans":
        """Both as one frame."""
        return Loans(loans=joined(earlier.loans, self.loans))


class Health(Frame, frozen=True):
    """Front end -> supervisor: why it does not serve now (`frontend/readiness.py`); no reasons: it serves.

    Sent before `Ready`, and whenever that changes.
    """

    reasons: tuple[str, ...]


class DrainWanted(Frame, frozen=True):
    """Front end -> supervisor: an operator asked this server to drain and end."""


class Drain(Frame, frozen=True):
    """Supervisor -> child: stop taking new work, finish what runs, say `Drained`, exit.

    A front end reports itself unhealthy at once, goes on for `delay_s` (so that load balancers look elsewhere), then
    refuses new calls and gives running ones `grace_s`.
    """

    delay_s: float
    grace_s: float


class Drained(Frame, frozen=True):
    """Child -> supervisor: nothing is left running here."""


class Sample(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One metric's change since the last Stats.

    Of a counter its increment, of a gauge its new value, of a histogram the sum of the new observations and then their
    number in each bucket, the last being without end. Without values: the series has ended.
    """

    name: str
    labels: tuple[str, ...]
    values: list[float]


class Account(Frame, frozen=True, kw_only=True):
    """Front end -> supervisor, every second: what is to be written down since the last one, made when it is sent.

    `entries` are for the audit; `usage` and `keys` (id of a key -> the day on which it was used, `YYYY-MM-DD`) are
    added to what is known.
    """

    entries: list[Entry]
    usage: list[Sums]
    keys: dict[str, str]


class Stats(Frame, frozen=True):
    """Child -> supervisor, every second: metric samples. Also the heartbeat of the child's main loop."""

    samples: list[Sample]
