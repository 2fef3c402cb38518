"""What tenants have used: numbers that are added up, on their way from a front end to the catalog. Pure."""

import msgspec


class Sums(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Of one tenant, since the last ones.

    Attributes:
        input_tokens: of the inputs that were answered.
        rejected: refused inputs and calls, by reason.
    """

    tenant: str
    calls: int = 0
    input_tokens: int = 0
    generated_tokens: int = 0
    rejected: dict[str, int] = {}


def add(one: Sums, other: Sums) -> Sums:
    """Both, of the same tenant."""
    rejected = dict(one.rejected)
    for reason, number in other.rejected.items():
        rejected[reason] = rejected.get(reason, 0) + number
    return Sums(
        tenant=one.tenant,
        calls=one.calls + other.calls,
        input_tokens=one.input_tokens + other.input_tokens,
        generated_tokens=one.generated_tokens + other.generated_tokens,
        rejected=rejected,
    )
