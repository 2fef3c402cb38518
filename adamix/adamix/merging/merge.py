"""Merging: a mixture of experts in, the bytes of one adapter file out.

The arithmetic is in `merging.rules`, what some methods learn from text in the other modules of `merging`; here a
method is chosen, and told what it needs. The mixture's file is `mixture_file`'s, whose names are this module's as well.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from adamix.errors import InvalidConfig
from adamix.files.mixture_file import MIXTURE_FILE, MixtureFile, MixtureManifest, expert_key, initial_key, read_mixture
from adamix.merging.rules import (
    Rule,
    by_projection,
    check_weights,
    combine,
    dare,
    fisher,
    regmean,
    ties,
    uniform,
    weighted,
)
from adamix.merging.settings import DATA_METHODS, DEFAULT_DENSITY, METHODS, MergeConfig, Method

if TYPE_CHECKING:
    from adamix.merging.samples import OnProgress, Samples

__all__ = [
    "DATA_METHODS",
    "METHODS",
    "MIXTURE_FILE",
    "MergeConfig",
    "Method",
    "MixtureFile",
    "MixtureManifest",
    "Weights",
    "expert_key",
    "initial_key",
    "merge",
    "read_mixture",
]

# One weight per expert, or the same for each projection that is a mixture of several, by its key.
Weights = Sequence[float] | Mapping[str, Sequence[float]]

_MAX_RECORD = 64


def merge(
    source: str | os.PathLike[str] | MixtureFile,
    how: str = "uniform",
    *,
    weights: Weights | None = None,
    samples: "Samples | None" = None,
    config: MergeConfig | None = None,
    on_progress: "OnProgress | None" = None,
) -> bytes:
    """Merge a mixture into the canonical bytes of one adapter file.

    `uniform` is the paper's: the mean over the experts of each projection. For a LoRA with a shared factor this is
    exactly the mean of the experts' products; for a bottleneck it is not (the activation lies in between), which is
    why training must keep the experts in one basis (`mixture.py`). Experts that are all equal merge into themselves,
    bit for bit, by every method but `ties` and `dare` at a density under 1, which drop changes.

    A shared projection is a mixture of one, and stays as it is. The head is copied.

    Args:
        source: a training directory, a mixture file, or a mixture.
        how: one of METHODS.
        weights: of `weighted`, and of nothing else. They are divided by their sum: 3,1 is the same as 0.75,0.25.
        samples: labelled text, or sources with reference texts, and what reads it, for DATA_METHODS; on a split that
            the result is not tested on.
        config: everything else a method may be told.
        on_progress: called with (done, total) as the methods that take samples go on.

    Raises:
        InvalidConfig: `how` is not offered or lacks what it needs; the experts have no common start (`ties`, `dare`).
        InvalidAdapter: the mixture is malformed, or does not fit the backbone of the samples.
        InvalidData: the samples are of another task, have labels the head does not know, or have no rows.
        FailedPrecondition: the head is for no task with labels or texts; or `learned` diverged.
    """
    if how not in METHODS:
        raise InvalidConfig(f"--how must be one of {', '.join(METHODS)}, not {how[:40]!r}", field="how")
    if how != "weighted" and weights is not None:
        raise InvalidConfig(f"weights are for --how weighted, not {how}", field="weights")
    if how in DATA_METHODS and samples is None:
        raise InvalidConfig(f"merging by {how} learns from text: give --data", field="data")
    mixture = source if isinstance(source, MixtureFile) else read_mixture(source)
    settings = config or MergeConfig()
    if samples is not None and how in DATA_METHODS:
        rule, record = _learned_rule(mixture, how, samples, settings, on_progress or _ignore)
    else:
        rule, record = _rule(mixture, how, weights, settings)
    return combine(mixture, rule, record)


def _rule(mixture: MixtureFile, how: str, weights: Weights | None, config: MergeConfig) -> tuple[Rule, str]:
    """The rule of a method that looks at nothing but the experts, and the manifest's record of it."""
    if how == "uniform":
        return uniform, how
    if how == "weighted":
        return _weighted_rule(mixture, weights)
    density = DEFAULT_DENSITY[how] if config.density is None else config.density  # type: ignore[index]  # ties, dare
    if how == "ties":
        return lambda projection: ties(projection, density), f"ties density={density:g}"
    random = np.random.default_rng(config.seed)
    return lambda projection: dare(projection, density, random), f"dare density={density:g} seed={config.seed}"


def _weighted_rule(mixture: MixtureFile, weights: Weights | None) -> tuple[Rule, str]:
    if weights is None:
        raise InvalidConfig("--how weighted needs --weights, one per expert", field="weights")
    if isinstance(weights, Mapping):
        each = by_projection(weights, mixture)
        return lambda projection: weighted(projection, each[projection.key]), "weighted by projection"
    check_weights(weights, mixture.manifest.num_experts)
    values = list(weights)
    record = "weighted " + ",".join(f"{value:g}" for value in values)
    return lambda projection: weighted(projection, values), record if len(record) <= _MAX_RECORD else "weighted"


def _learned_rule(
    mixture: MixtureFile, how: str, samples: "Samples", config: MergeConfig, on_progress: "OnProgress"
) -> tuple[Rule, str]:
    """The rule of a method that runs the experts on text, and the manifest's record of it."""
    combine(mixture, uniform, how)  # refuses what is malformed before anything else looks at it
    if all(projection.num_experts == 1 for projection in mixture.projections().values()):
        return uniform, how  # there is nothing to choose
    limited = samples.limited(config)
    num_rows = len(limited.data.examples)
    # Here, because they bring torch and transformers, which the other methods do without.
    if how == "greedy":
        from adamix.merging.greedy import choose, members

        choice = choose(mixture, limited, config, on_progress)
        shares = members(choice.experts, mixture.manifest.num_experts)
        record = "greedy " + ",".join(str(expert) for expert in choice.experts)
        if len(record) > _MAX_RECORD:
            record = f"greedy {len(choice.experts)} of {len(shares)}"
        return lambda projection: weighted(projection, shares), record
    if how == "learned":
        from adamix.merging.learned import learn

        learned = learn(mixture, limited, config, on_progress)
        return lambda p: weighted(p, learned.weights[p.key]), f"learned steps={learned.steps} rows={num_rows}"
    if how == "fisher":
        from adamix.merging.fisher import information

        found = information(mixture, limited, config, on_progress)
        return lambda projection: fisher(projection, found[projection.key]), f"fisher rows={num_rows}"
    from adamix.merging.regmean import moments

    sums = moments(mixture, limited, config, on_progress)
    return lambda projection: regmean(projection, sums[projection.key]), f"regmean rows={num_rows}"


def _ignore(done: int, total: int) -> None:
    """No one asked for progress."""
