"""The routes that a trained mixture can be measured by: merged, random, one fixed expert, or all of them together.

What a routing is and how it is written, how routes are drawn, by generators of their own, and how paths are averaged.
Who follows them is not known here: `probe` for labels, `text_probe` for texts.

Shapes: S paths, N rows, L tokens, P points (layer x site), C outputs of the head.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from adamix.data import TaskType
from adamix.errors import InvalidConfig
from adamix.routing.experts import Pairing
from adamix.rows.labelled import TokenRow

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


def draw_route(seed: int, num_points: int, num_experts: int) -> NDArray[np.int64]:
    """The experts of a route that all rows share: uniform and independent, int64 `[P, 2]`."""
    return _draw(seed, b"", (num_points, 2), num_experts)


def draw_token_routes(
    seed: int, rows: Sequence[TokenRow], num_points: int, num_experts: int, granularity: Granularity
) -> NDArray[np.int64]:
    """The experts of each token of some rows, `[N, L, P, 2]`; at `sentence` those of a row are all alike.

    A row is known by its token ids, so equal texts have equal routes wherever they stand.
    """
    routes = np.zeros((len(rows), max(map(len, rows)), num_points, 2), dtype=np.int64)
    for index, row in enumerate(rows):
        text = granularity.encode() + np.asarray(row.input_ids, dtype="<i8").tobytes()
        length = len(row) if granularity == "token" else 1
        routes[index, : len(row)] = _draw(seed, text, (length, num_points, 2), num_experts)
    return routes


def average(paths: Tensor, task_type: TaskType, of: Average) -> Tensor:
    """The mean over paths `[S, N, C]` as logits fp32 `[N, C]`.

    Mean probabilities p are given as logits that have them: log p of a classification, log p/(1-p) of each label of a
    multi-label task. A regression's outputs are values either way.
    """
    values = paths.double()
    if of == "logits" or task_type == "regression":
        return values.mean(0).float()
    if task_type == "classification":
        return _log_mean_exp(values.log_softmax(-1)).float()
    return (_log_mean_exp(F.logsigmoid(values)) - _log_mean_exp(F.logsigmoid(-values))).float()


def _log_mean_exp(logs: Tensor) -> Tensor:
    return logs.logsumexp(0) - math.log(len(logs))


def _draw(seed: int, text: bytes, shape: tuple[int, ...], num_experts: int) -> NDArray[np.int64]:
    """Uniform over experts, by a counter-based generator whose raw bits are the same in every version of numpy."""
    key = hashlib.blake2b(f"{seed}:".encode() + text, digest_size=16).digest()
    bits = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(int(np.prod(shape)))
    # 2^64 is so much larger than any M that the remainder is uniform to 1 part in 2^58.
    return np.asarray(bits % np.uint64(num_experts)).astype(np.int64).reshape(shape)
