"""What a benchmark of serving is asked to do: one frozen value per run, checked when it is made. No torch here."""

import os
from dataclasses import dataclass
from typing import Literal, get_args

from adamix.errors import InvalidConfig
from adamix_server.config import EngineSettings
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL

Popularity = Literal["distinct", "uniform", "zipf", "identical"]
Loop = Literal["closed", "open"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of `adamix bench serving`.

    Attributes:
        tasks: distinct tasks that are registered and asked.
        in_flight: calls a closed loop keeps open.
        rate: calls a second of an open loop; `cv` is the coefficient of variation of the times between them.
        slots: of the server; `resident_share` gives them as a share of the tasks instead.
        slo_ms: a call that takes longer does not count as good.
        requests: inputs per repetition and way; `seconds` bounds a closed loop over the wire by time instead.
        repetitions: turns, each of which runs every way once; one more before them warms up and is not counted.
        threads: of the operators, in this process and in the server; 0 takes one per core.
        server: HOST:PORT of a running server to ask instead of starting one.
        deterministic: also measure the engine in process as `--deterministic` makes it.
    """

    backbone: str = "minilm"
    tasks: int = 32
    popularity: Popularity = "uniform"
    loop: Loop = "closed"
    in_flight: int = 4
    inputs_per_call: int = 32
    rate: float | None = None
    cv: float = 1.0
    slots: int | None = None
    resident_share: float | None = None
    slo_ms: float = 200.0
    requests: int = 800
    seconds: float | None = None
    repetitions: int = 7
    max_batch_tokens: int = EngineSettings.max_batch_tokens
    threads: int = 0
    front_ends: int = 1
    server: str | None = None
    peers: bool = False
    deterministic: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "tasks": (1, 100_000),
            "in_flight": (1, 4096),
            "inputs_per_call": (1, MAX_INPUTS_PER_CALL),
            "rate": (1e-3, 1e6),
            "cv": (0.0, 100.0),
            "slots": (1, 1 << 20),
            "resident_share": (1e-6, 1.0),
            "slo_ms": (0.0, 1e9),
            "requests": (1, 10_000_000),
            "seconds": (0.1, 3600.0),
            "repetitions": (1, 1000),
            "max_batch_tokens": (16, 1 << 20),
            "threads": (0, 1024),
            "front_ends": (1, 64),
            "seed": (0, 2**32 - 1),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            # Written so that a NaN is refused.
            if value is not None and not low <= value <= high:
                raise InvalidConfig(f"{name} must be in {low:g}..{high:g}, not {value}", field=name)
        for name, choices in (("popularity", get_args(Popularity)), ("loop", get_args(Loop))):
            if getattr(self, name) not in choices:
                raise InvalidConfig(
                    f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}", field=name
                )
        if self.loop == "open" and self.rate is None:
            raise InvalidConfig("an open loop needs --rate, in calls a second", field="rate")
        if self.loop == "open" and self.seconds is not None:
            raise InvalidConfig("an open loop ends after --requests; --seconds bounds a closed one", field="seconds")
        if self.loop == "closed" and self.rate is not None:
            raise InvalidConfig(
                "a closed loop has no --rate: it sends when it is answered; say --loop open", field="rate"
            )
        if self.slots is not None and self.resident_share is not None:
            raise InvalidConfig("give --slots or --resident-share, not both", field="slots")
        if self.server is not None and (
            self.slots or self.resident_share or self.front_ends > 1 or self.peers or self.deterministic
        ):
            raise InvalidConfig(
                "--slots, --resident-share, --front-ends, --peers and --deterministic are for a server of the "
                "benchmark's own"
            )

    @property
    def num_slots(self) -> int:
        """Slots of the server that is started."""
        if self.resident_share is not None:
            return max(1, round(self.resident_share * self.tasks))
        return EngineSettings.slots if self.slots is None else self.slots

    @property
    def num_threads(self) -> int:
        return self.threads or len(os.sched_getaffinity(0))
