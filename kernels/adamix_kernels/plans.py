"""How a launch is shaped: tile sizes, warps and stages by architecture, operands and batch. Nothing is tuned online.

One table per architecture, `plans/<architecture>.json`, holds a list of rules for each op. A rule has limits on the
facts of a launch and a plan; the first rule whose limits hold gives the plan. So a plan depends on sizes alone, and is
constant for one shape of batch: a CUDA graph may hold it, and a row's result does not change with what other adapters
are in its batch unless that changes the sizes. `adamix bench kernels --tune` writes tables. Knows no Triton and no
tensors.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

ARCHITECTURES = ("sm80", "sm90", "sm100", "gfx942")
DTYPES = ("fp16", "bf16", "fp32")
RANK_CLASSES = (16, 32, 64, 128, 256)
# Which kernels an op may run as.
KERNELS = {"low_rank": ("fused", "split"), "weight_gradients": ("grouped",)}


@dataclass(frozen=True)
class Facts:
    """The sizes of a launch that a rule may limit.

    Attributes:
        dtype: of the weights: fp16, bf16 or fp32.
        rank: the largest rank class in the batch.
        features: the larger of the features going in and coming out.
        rows: T.
        segments: G.
    """

    dtype: str
    rank: int
    features: int
    rows: int
    segments: int

    @property
    def rows_per_segment(self) -> int:
        return -(-self.rows // max(self.segments, 1))

    @property
    def tiles(self) -> int:
        """About how many tiles of 16 rows there are: a measure of how many programs can run beside one another."""
        return self.rows // 16 + min(self.segments, self.rows)

    @property
    def matrix_bytes(self) -> int:
        """Bytes of one projection of one adapter."""
        return self.features * self.rank * (4 if self.dtype == "fp32" else 2)


@dataclass(frozen=True)
class Plan:
    """One way to launch an op.

    Attributes:
        kernel: one of `KERNELS[op]`: `fused` is one launch, one program a tile; `split` two launches (`shrink`,
            `expand`) that also divide the features.
        block_m: rows of a tile; at least 16, which is what tensor cores take.
        block_h: features of one step of a product's sum.
        block_n: `split`: columns of a program of `expand`; `grouped`: columns of a program.
        splits: `split`: parts of the sum over features; `grouped`: parts of the sum over rows.
        num_warps, num_stages: Triton's.
        pdl: `split`: the second launch begins while the first still runs (programmatic dependent launch, from sm90 on).
    """

    kernel: str
    block_m: int
    block_h: int
    num_warps: int
    num_stages: int
    block_n: int = 0
    splits: int = 1
    pdl: bool = False

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if type(value) is not each.type:
                raise ValueError(f"{each.name} of a plan must be of {each.type}: {value!r}")
        blocks = [self.block_m, self.block_h, *([] if self.kernel == "fused" else [self.block_n])]
        if any(size < 1 or size & (size - 1) for size in (*blocks, self.num_warps)) or min(blocks) < 16:
            raise ValueError(
                f"block_m, block_h and block_n must be powers of two from 16 on, warps a power of two: {self}"
            )
        if self.splits < 1 or self.num_stages < 1:
            raise ValueError(f"splits and num_stages must be at least 1: {self}")


@dataclass(frozen=True)
class Rule:
    """A plan, and where it holds.

    Attributes:
        name: unique within its table; what reports call the plan.
        dtypes: those it is for.
        limits: `max_<fact>` or `min_<fact>` -> bound, both inclusive.
    """

    name: str
    plan: Plan
    dtypes: tuple[str, ...]
    limits: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, bound in self.limits.items():
            side, _, fact = name.partition("_")
            if type(bound) is not int:
                raise ValueError(f"rule {self.name!r} limits {name!r} by {bound!r}, which is not an integer")
            if side not in ("max", "min") or not isinstance(getattr(Facts("fp32", 16, 8, 1, 1), fact, None), int):
                raise ValueError(f"rule {self.name!r} limits {name!r}, which is not max_ or min_ of a fact")

    def holds(self, facts: Facts) -> bool:
        if facts.dtype not in self.dtypes:
            return False
        for name, bound in self.limits.items():
            side, _, fact = name.partition("_")
            value = getattr(facts, fact)
            if value > bound if side == "max" else value < bound:
                return False
        return True


def rank_class(rank: int) -> int:
    """The least class a rank fits in: 16, 32, 64, 128 or 256. Raises ValueError above the last."""
    for size in RANK_CLASSES:
        if rank <= size:
            return size
    raise ValueError(f"rank {rank} is above {RANK_CLASSES[-1]}, the largest the kernels take")


# Bounded, because a server meets ever new numbers of rows and segments.
@lru_cache(maxsize=4096)
def pick(op: str, architecture: str, facts: Facts, kernel: str | None = None) -> Plan:
    """The plan of the first rule that holds; with `kernel`, of the first one for that kernel.

    Raises:
        ValueError: none does.
    """
    for rule in table(architecture)[op]:
        if kernel in (None, rule.plan.kernel) and rule.holds(facts):
            return rule.plan
    raise ValueError(f"no plan of {op} on {architecture} for {facts}")


@cache
def table(architecture: str) -> dict[str, tuple[Rule, ...]]:
    """The rules of one architecture by op. Raises ValueError if it has no table or the table is malformed."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"no plans for {architecture!r}; there are plans for {', '.join(ARCHITECTURES)}")
    text = (files("adamix_kernels") / "plans" / f"{architecture}.json").read_text("utf-8")
    try:
        return parse(json.loads(text), architecture)
    except json.JSONDecodeError as error:
        raise ValueError(f"{architecture}: the table is not JSON: {error}") from error


def parse(document: dict[str, Any], architecture: str) -> dict[str, tuple[Rule, ...]]:
    """The rules of a table's document; every op must have a last rule for each dtype without limits.

    Raises:
        ValueError: the table is malformed.
    """
    if set(document) != set(KERNELS):
        raise ValueError(
            f"{architecture}: a table has rules for {', '.join(KERNELS)}; this one for {', '.join(document)}"
        )
    rules = {op: tuple(_rule(each, op) for each in document[op]) for op in KERNELS}
    for op, of_op in rules.items():
        names = [rule.name for rule in of_op]
        if len(set(names)) != len(names):
            raise ValueError(f"{architecture}: two rules of {op} have one name")
        open_dtypes = {dtype for rule in of_op if not rule.limits for dtype in rule.dtypes}
        if missing := set(DTYPES) - open_dtypes:
            raise ValueError(f"{architecture}: {op} has no rule without limits for {', '.join(sorted(missing))}")
    return rules


def document(rules: dict[str, Sequence[Rule]]) -> dict[str, Any]:
    """What `parse` reads: fields at their default are left out."""
    return {
        op: [
            {
                "name": rule.name,
                "dtypes": list(rule.dtypes),
                **({"limits": rule.limits} if rule.limits else {}),
                "plan": {
                    each.name: value
                    for each in fields(Plan)
                    if (value := getattr(rule.plan, each.name)) != each.default
                },
            }
            for rule in of_op
        ]
        for op, of_op in rules.items()
    }


def _rule(entry: Any, op: str) -> Rule:
    if not isinstance(entry, dict) or not {"name", "dtypes", "plan"} <= set(entry) <= {
        "name",
        "dtypes",
        "plan",
        "limits",
    }:
        raise ValueError(f"a rule of {op} must have name, dtypes and plan, and may have limits: {entry}")
    name, dtypes = entry["name"], entry["dtypes"]
    try:
        plan = Plan(**entry["plan"])
    except TypeError as error:
        raise ValueError(f"rule {name!r} has a plan with missing or unknown fields: {error}") from error
    if plan.kernel not in KERNELS[op]:
        raise ValueError(f"{op} has no kernel {plan.kernel!r}; it has {', '.join(KERNELS[op])}")
    if not dtypes or not set(dtypes) <= set(DTYPES):
        raise ValueError(f"rule {name!r} is for no dtypes or unknown dtypes: {dtypes}")
    return Rule(name, plan, tuple(dtypes), dict(entry.get("limits", {})))
