"""How many random routes are drawn where nobody says, and where drawing has no meaning. Imports no torch."""

from typing import TYPE_CHECKING

from adamix.errors import InvalidConfig

if TYPE_CHECKING:
    from adamix.routing.choice import Routing

DEFAULT_SEEDS = 10
MAX_SEEDS = 1000


def num_routes(routing: "Routing", seeds: int | None) -> int:
    """The number of random routes. Raises InvalidConfig where it has no meaning for the routing."""
    if seeds is not None and not 1 <= seeds <= MAX_SEEDS:
        raise InvalidConfig(f"--seeds must be in 1..{MAX_SEEDS}, not {seeds}", field="seeds")
    if seeds is not None and routing.mode not in ("random", "ensemble"):
        raise InvalidConfig(
            f"--seeds is for random routing (and the ensemble's comparison with it); {routing} has no draws",
            field="seeds",
        )
    if routing.mode == "ensemble" and seeds == 1:
        raise InvalidConfig(
            "--seeds: routes are compared with one another, so there must be two or more", field="seeds"
        )
    return DEFAULT_SEEDS if seeds is None else seeds
