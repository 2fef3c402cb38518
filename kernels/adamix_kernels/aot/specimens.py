"""Every kernel as every plan launches it, for `adamix_kernels.aot`. Knows Triton only.

A plan holds for ranges of sizes; what a program takes depends on few of them. A specimen is therefore made for each
rule of the tables, each rank class it can be picked for, and one dtype of each kind: 16-bit (bf16; fp16 differs in the
names of instructions alone) and fp32.

Shapes: H features, R rank class, T rows, G segments.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

from adamix_kernels.gpu import attention, heads, low_rank, weight_gradients
from adamix_kernels.gpu.specimen import Specimen
from adamix_kernels.plans import Facts, Rule, table

_DTYPES = ("bf16", "fp32")
# The usual sizes first: a rule is shown with the first that lead to it.
_RANKS = (64, 16, 32, 128, 256)
_FEATURES = (768, 1024, 384, 4096)
_ROWS = (512, 2048, 8192, 4096, 128, 32, 8, 1)
_SEGMENTS = (16, 64, 1)


def specimens(target: str) -> Iterator[Specimen]:
    """All of them, those of one kernel with the most usual first."""
    for rule, facts in reached("low_rank", target):
        yield from _low_rank(rule, facts)
    for rule, facts in reached("weight_gradients", target):
        yield from weight_gradients.specimens(rule, facts)
    yield from heads.specimens(target)
    yield from attention.specimens(target)


def reached(op: str, target: str) -> Iterator[tuple[Rule, Facts]]:
    """Each rule of an op with each dtype and rank class it is picked for, and the first sizes for which it is."""
    rules, seen = table(target)[op], set()
    for sizes in product(_DTYPES, _RANKS, _FEATURES, _ROWS, _SEGMENTS):
        facts = Facts(*sizes)
        rule = next(rule for rule in rules if rule.holds(facts))
        if (rule.name, facts.dtype, facts.rank) not in seen:
            seen.add((rule.name, facts.dtype, facts.rank))
            yield rule, facts


def _low_rank(rule: Rule, facts: Facts) -> Iterator[Specimen]:
    plan, h = rule.plan, facts.features
    data = f"*{facts.dtype}"
    name = f"{rule.name}, {facts.dtype}, R={facts.rank}, H={h}"
    options: dict[str, Any] = {"num_warps": plan.num_warps, "num_stages": plan.num_stages}
    rows = {"R": facts.rank, "BLOCK_M": plan.block_m, "PRECISION": "ieee", "INTERPRETED": False}
    operands = {"base": data, "records": "*i64", "tiles": "*i32", "num_slots": "i32"}
    if plan.kernel == "fused":
        types = operands | dict.fromkeys(("out", "residual", "source", "norm_weight", "norm_bias"), data)
        types |= {"hidden": "*fp32", "slopes": data}
        widths = dict.fromkeys(("IN", "OUT", "OUT_STRIDE", "RESIDUAL_STRIDE", "SOURCE_STRIDE"), h)
        sizes = rows | widths | {"BLOCK_H": plan.block_h, "HAS_RESIDUAL": True, "EPS": 1e-5}
        plain = sizes | dict.fromkeys(("IN_PLACE", "NORM", "SAVE_HIDDEN", "BACKWARD"), False)
        for kernel, use in (
            ("fused, in place", {"IN_PLACE": True}),
            ("fused, norm point", {"NORM": True}),
            ("fused, for training", {"SAVE_HIDDEN": True}),
            ("fused, backward", {"BACKWARD": True}),
        ):
            yield Specimen(kernel, low_rank.fused, types, plain | use, name, options)
        if facts.dtype == "fp32":
            rounded = plain | {"IN_PLACE": True, "PRECISION": "tf32"}
            yield Specimen("fused, in place, tf32", low_rank.fused, types, rounded, name, options)
        return
    sizes = rows | {"SPLITS": plan.splits, "PDL": plan.pdl}
    types = operands | {"planes": "*fp32", "num_rows": "i32"}
    shrink = sizes | {"IN": h, "SOURCE_STRIDE": h, "BLOCK_H": plan.block_h}
    yield Specimen("shrink", low_rank.shrink, types | {"source": data}, shrink, name, options)
    expand = sizes | {"OUT_STRIDE": h, "RESIDUAL_STRIDE": h, "BLOCK_N": plan.block_n, "IN_PLACE": True}
    types |= {"out": data, "residual": data, "chunks": "*i32"}
    yield Specimen("expand", low_rank.expand, types, expand, name, options | ({"launch_pdl": True} if plan.pdl else {}))
