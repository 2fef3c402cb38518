"""Few-shot subsets: K rows in all, balanced over classes (AdaMix reports |K| = 30 over 5 seeds)."""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise

from adamix.data.generation.data import GenerationData
from adamix.data.task import TaskData
from adamix.errors import InvalidConfig

_QUANTILES = 10


def few_shot(data: TaskData, k: int, seed: int) -> TaskData:
    """`k` rows of `data` in all, as evenly over its classes as it has rows for.

    Classes take turns in a seeded order, each giving its rows in a seeded order, and a class that has run out is
    passed over. So the subset of a smaller `k` with the same seed is the beginning of the larger one. Regression
    takes turns over 10 quantiles of the target (over `k`, where that is fewer); multilabel over the labels and the
    rows that have none.

    Args:
        data: the rows to choose from, usually the train split.
        k: number of rows in all.
        seed: any integer; equal seeds give equal subsets.

    Raises:
        InvalidConfig: `k` is below the number of classes or above the number of rows.
    """
    if k < max(1, len(data.labels)):
        raise InvalidConfig(f"few-shot needs a row per class, but {k} is below the {len(data.labels)} of {data.name}")
    if k > len(data.examples):
        raise InvalidConfig(f"few-shot asks for {k} rows, but {data.name} has {len(data.examples)}")
    rng = random.Random(seed)  # noqa: S311 - a reproducible choice, not a secret
    groups = _groups(data, k)
    for group in groups:
        rng.shuffle(group)
    rng.shuffle(groups)
    return replace(data, examples=tuple(data.examples[i] for i in islice(_in_turns(groups), k)))


def few_sources(data: GenerationData, k: int, seed: int) -> GenerationData:
    """`k` sources in a seeded order, each with all its references; a smaller `k` gives the beginning of a larger one.

    Raises:
        InvalidConfig: `k` is below 1 or above the number of sources.
    """
    if not 1 <= k <= len(data.examples):
        raise InvalidConfig(f"few-shot takes 1 to {len(data.examples)} sources of {data.name}, not {k}")
    order = list(range(len(data.examples)))
    random.Random(seed).shuffle(order)  # noqa: S311 - a reproducible choice, not a secret
    return replace(data, examples=tuple(data.examples[index] for index in order[:k]))


def _groups(data: TaskData, k: int) -> list[list[int]]:
    """Row numbers by class, quantile or label. Every row is in a group; groups of a multilabel task overlap."""
    if data.task_type == "regression":
        targets = [(e.label, i) for i, e in enumerate(data.examples) if not isinstance(e.label, tuple)]
        ranked = [index for _, index in sorted(targets)]
        bins = min(_QUANTILES, k)
        return [ranked[a:b] for a, b in pairwise(len(ranked) * b // bins for b in range(bins + 1))]
    groups: dict[int, list[int]] = {}
    for index, example in enumerate(data.examples):
        ids = example.label if isinstance(example.label, tuple) else (int(example.label),)
        for label in ids or (len(data.labels),):
            groups.setdefault(label, []).append(index)
    return [groups[label] for label in sorted(groups)]


def _in_turns(groups: list[list[int]]) -> Iterator[int]:
    """One row of each group after the other, each row once; uses the groups up."""
    seen: set[int] = set()
    while groups:
        for group in groups:
            while group and group[-1] in seen:
                group.pop()
            if group:
                seen.add(group[-1])
                yield group.pop()
        groups = [group for group in groups if group]
