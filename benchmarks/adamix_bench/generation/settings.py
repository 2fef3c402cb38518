"""What a benchmark of generation is asked to do: one frozen value per run, checked when it is made. No torch here."""

from dataclasses import dataclass

from adamix.errors import InvalidConfig

CONCURRENCIES = (1, 8, 32, 64)
QUICK_CONCURRENCIES = (1, 8, 32)
MOST_AT_ONCE = 64

# Ways by the names that they have in the document.
FP32, BF16 = "adamix-fp32", "adamix-bf16"
SERVED = "adamix-fp32-grpc"
FLOOR = "floor"
CONTINUOUS, PLAIN = "transformers-cb", "transformers-generate"
WAYS = (FP32, BF16, SERVED, FLOOR, CONTINUOUS, PLAIN)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of `adamix bench generation`.

    Attributes:
        concurrency: how many requests come at once, one round of measurements each.
        ways: what is measured beside transformers' continuous batching, which always is.
        repetitions: turns that count.
        threads: of the operators; 0 takes one per core.
        profile: the engine runs once more a round, and the report says where its time went.
    """

    backbone: str = "smollm2"
    concurrency: tuple[int, ...] = CONCURRENCIES
    ways: tuple[str, ...] = WAYS
    repetitions: int = 3
    threads: int = 0
    seed: int = 1
    profile: bool = False

    def __post_init__(self) -> None:
        if not self.concurrency or any(not 1 <= count <= MOST_AT_ONCE for count in self.concurrency):
            raise InvalidConfig(f"concurrency must be in 1..{MOST_AT_ONCE}, each", field="concurrency")
        for name in self.ways:
            if name not in WAYS:
                raise InvalidConfig(f"there is no way {name[:40]!r}: there are {', '.join(WAYS)}", field="only")
        bounds = {"repetitions": (1, 100), "threads": (0, 1024), "seed": (0, 2**32 - 1)}
        for name, (low, high) in bounds.items():
            if not low <= (value := getattr(self, name)) <= high:
                raise InvalidConfig(f"{name} must be in {low}..{high}, not {value}", field=name)

    def wants(self, way: str) -> bool:
        return way in self.ways or way == CONTINUOUS
