"""What a proof of tenants is asked to do: one frozen value per run, checked when it is made. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass

from adamix.errors import InvalidConfig

# In the order in which they are measured.
PARTS = (
    "noisy-neighbour",
    "fair-share",
    "overload",
    "batch-class",
    "traps",
    "cost",
    "rates",
    "revocation",
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How long everything takes.

    Attributes:
        knee_s, alone_s, flood_s, share_s, overload_s, batch_s, trap_s, rate_s: seconds of a scenario of each part.
        idle_s: of the tenant that comes back.
        many_tasks: of a flood.
        cost_calls, cost_turns: calls in a turn, and turns that count.
        all_rows: each kind of flood, overload and trap, rather than those that say most.
    """

    knee_s: float
    alone_s: float
    flood_s: float
    share_s: float
    overload_s: float
    batch_s: float
    trap_s: float
    idle_s: float
    rate_s: float
    many_tasks: int
    cost_calls: int
    cost_turns: int
    all_rows: bool


QUICK = Sizes(
    knee_s=4,
    alone_s=4,
    flood_s=3.5,
    share_s=6,
    overload_s=4,
    batch_s=6,
    trap_s=3,
    idle_s=2,
    rate_s=3,
    many_tasks=100,
    cost_calls=100,
    cost_turns=3,
    all_rows=False,
)
FULL = Sizes(
    knee_s=15,
    alone_s=30,
    flood_s=30,
    share_s=30,
    overload_s=20,
    batch_s=30,
    trap_s=24,
    idle_s=60,
    rate_s=60,
    many_tasks=1000,
    cost_calls=200,
    cost_turns=21,
    all_rows=True,
)
SIMULATED_QUICK = Sizes(
    knee_s=5,
    alone_s=15,
    flood_s=12,
    share_s=10,
    overload_s=10,
    batch_s=12,
    trap_s=12,
    idle_s=60,
    rate_s=60,
    many_tasks=1000,
    cost_calls=0,
    cost_turns=0,
    all_rows=True,
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of `adamix bench tenants`.

    Attributes:
        only: parts to measure; all if empty.
        threads: of the server's operators; 0 takes one per core.
        batch_ms, token_us: of the simulated device: milliseconds of every batch, and microseconds of a token. None: of
            a small machine, or of the run whose document is given.
    """

    backbone: str = "minilm"
    full: bool = False
    simulate: bool = False
    only: Sequence[str] = ()
    threads: int = 0
    batch_ms: float | None = None
    token_us: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in PARTS:
                raise InvalidConfig(f"--only {name}: there are {', '.join(PARTS)}", field="only")
        bounds: dict[str, tuple[float, float]] = {
            "threads": (0, 1024),
            "batch_ms": (0.0, 10_000.0),
            "token_us": (0.01, 1_000_000.0),
            "seed": (0, 2**32 - 1),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            # Written so that a NaN is refused.
            if value is not None and not low <= value <= high:
                raise InvalidConfig(f"{name} must be in {low:g}..{high:g}, not {value}", field=name)
        if not self.simulate and (self.batch_ms is not None or self.token_us is not None):
            raise InvalidConfig("--batch-ms and --token-us are of a simulated device: say --simulate", field="batch_ms")

    @property
    def sizes(self) -> Sizes:
        if self.full:
            return FULL
        return SIMULATED_QUICK if self.simulate else QUICK

    def wants(self, part: str) -> bool:
        return not self.only or part in self.only
