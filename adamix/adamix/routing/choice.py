"""Which routes a mixture can be measured by, and how a flag names one. Imports nothing that is slow to load."""

import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from adamix.errors import InvalidConfig

Pairing = Literal["paired", "all"]
Mode = Literal["merged", "random", "fixed", "ensemble"]
Granularity = Literal["batch", "sentence", "token"]
Average = Literal["logits", "probabilities"]

_FORMS = "merged, random[:batch|sentence|token], fixed:I or ensemble[:logits|probabilities][:paired|all]"


@dataclass(frozen=True)
class Routing:
    """How rows find their experts at evaluation.

    Attributes:
        mode: `merged` is the mean of all experts (what is served); `random` a draw, independent for each layer, site
            and projection as in training; `fixed` one expert everywhere; `ensemble` the mean over several paths.
        granularity: of `random`: one route for the whole data set, for each text, or for each token.
        expert: of `fixed`. A shared projection has one expert, which takes part in every route.
        average: of `ensemble`: the mean of logits or of probabilities; a regression has values, and their mean.
        pairing: of `ensemble`: the M paths of down_i with up_i in every layer, or all M*M of down_i with up_j.
    """

    mode: Mode = "merged"
    granularity: Granularity = "batch"
    expert: int = 0
    average: Average = "logits"
    pairing: Pairing = "paired"

    def __post_init__(self) -> None:
        chosen = (
            (self.mode, Mode),
            (self.granularity, Granularity),
            (self.average, Average),
            (self.pairing, Pairing),
        )
        if any(value not in get_args(allowed) for value, allowed in chosen) or self.expert < 0:
            raise InvalidConfig(f"there is no such routing: {self}", field="routing")

    def check(self, num_experts: int) -> None:
        """Raises InvalidConfig where it names an expert that a mixture of so many does not have."""
        if self.mode == "fixed" and self.expert >= num_experts:
            raise InvalidConfig(f"{self}: the mixture has the experts 0 to {num_experts - 1}", field="routing")

    def __str__(self) -> str:
        details = {
            "merged": (),
            "random": (self.granularity,),
            "fixed": (str(self.expert),),
            "ensemble": (self.average, self.pairing),
        }
        return ":".join((self.mode, *details.get(self.mode, ())))


def parse_routing(text: str) -> Routing:
    """The routing that a flag names: `merged`, `random:token`, `fixed:2`, `ensemble:probabilities:all`.

    Raises:
        InvalidConfig: there is none of that name.
    """
    mode, *details = text.split(":")
    unknown = InvalidConfig(f"--routing must be {_FORMS}, not {text[:40]!r}", field="routing")
    if mode == "merged" and not details:
        return Routing()
    if mode == "random" and len(details) <= 1:
        granularity: Any = details[0] if details else "batch"
        if granularity in get_args(Granularity):
            return Routing("random", granularity=granularity)
    if mode == "fixed" and len(details) == 1 and re.fullmatch("[0-9]{1,3}", details[0]):
        return Routing("fixed", expert=int(details[0]))
    if mode == "ensemble":
        settings: dict[str, Any] = {}
        for detail in details:
            name = "average" if detail in get_args(Average) else "pairing" if detail in get_args(Pairing) else ""
            if not name or name in settings:
                raise unknown
            settings[name] = detail
        return Routing("ensemble", **settings)
    raise unknown
