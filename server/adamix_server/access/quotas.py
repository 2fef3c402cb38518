"""What a tenant may have and take: its hard limits by name, its weight and its class.

One that nobody set is the server's default, and 0 allows none. Knows neither what is used nor where it is counted.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

from adamix.errors import InvalidConfig, InvalidRequest

ServiceClass = Literal["interactive", "batch"]

MAX_WEIGHT = 1_000
# What an int64 on the wire and a column of the catalog can say.
MAX_QUOTA = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """Hard limits of one tenant; None for none.

    Attributes:
        max_tasks, max_versions_per_task, max_stored_bytes, pinned_versions: of what is stored. Bytes are those of the
            adapter files that its versions name, each file once.
        registrations_per_minute, input_tokens_per_s, generated_tokens_per_s: rates. Of registrations, a minute's may
            come at once.
        burst_s: seconds of each rate of tokens that may be taken at once; one, if it is not set.
        concurrent_uploads, concurrent_calls, concurrent_streams: at once, over all front ends.
        queued_tokens: that wait for the engine at once.
    """

    max_tasks: int | None = None
    max_versions_per_task: int | None = None
    max_stored_bytes: int | None = None
    pinned_versions: int | None = None
    registrations_per_minute: int | None = None
    input_tokens_per_s: int | None = None
    generated_tokens_per_s: int | None = None
    burst_s: int | None = None
    concurrent_uploads: int | None = None
    concurrent_calls: int | None = None
    concurrent_streams: int | None = None
    queued_tokens: int | None = None

    def over(self, defaults: "Quotas") -> "Quotas":
        """These, and where nobody set one, the default."""
        return Quotas(
            **{name: getattr(defaults, name) if (own := getattr(self, name)) is None else own for name in QUOTA_NAMES}
        )

    def to_map(self) -> dict[str, int]:
        """Those that are set, by name."""
        return {name: value for name in QUOTA_NAMES if (value := getattr(self, name)) is not None}


QUOTA_NAMES: tuple[str, ...] = tuple(each.name for each in fields(Quotas))
NO_QUOTAS = Quotas()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What a tenant is among others.

    Attributes:
        weight: its share of the device among those who want it now, 1 to 1,000.
        service_class: `batch` takes what `interactive` leaves.
    """

    weight: int = 1
    service_class: ServiceClass = "interactive"


DEFAULT_SHARES = Shares()


def check_quotas(values: Mapping[str, int], where: str = "quotas") -> Quotas:
    """The quotas of these names and values. Raises InvalidRequest (`QUOTA_INVALID`)."""
    for name, value in values.items():
        if name not in QUOTA_NAMES:
            raise InvalidRequest(
                f"{where}: there is no quota {name[:64]!r}; there are {', '.join(QUOTA_NAMES)}",
                reason="QUOTA_INVALID",
                field=f"{where}.{name[:64]}",
            )
        if not 0 <= value <= MAX_QUOTA:
            raise InvalidRequest(
                f"{where}.{name} must be in 0..2^62, not {value}", reason="QUOTA_INVALID", field=f"{where}.{name}"
            )
        if name == "burst_s" and value < 1:
            raise InvalidRequest(
                f"{where}.burst_s must be 1 at least", reason="QUOTA_INVALID", field=f"{where}.burst_s"
            )
    return Quotas(**values)


def check_weight(weight: int, where: str = "weight") -> int:
    """`weight`, if it is one. Raises InvalidRequest (`WEIGHT_INVALID`)."""
    if not 1 <= weight <= MAX_WEIGHT:
        raise InvalidRequest(f"{where} must be in 1..{MAX_WEIGHT}, not {weight}", reason="WEIGHT_INVALID", field=where)
    return weight


def parse_quotas(texts: Iterable[str], flag: str) -> Quotas:
    """Quotas of `name=value` as people write them. Raises InvalidConfig, for the setting `flag`."""
    values: dict[str, int] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not value.isdecimal():
            raise InvalidConfig(f"{flag} {name}={value}: say NAME=NUMBER, such as max_tasks=100", field=flag)
        values[name] = int(value)
    try:
        return check_quotas(values, flag)
    except InvalidRequest as error:
        raise InvalidConfig(error.message, field=flag) from None
