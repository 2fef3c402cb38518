"""Which data a `--data` flag means: labelled text, or with `--task-type generation` sources with reference texts."""

from typing import TYPE_CHECKING

from adamix.errors import InvalidConfig

if TYPE_CHECKING:
    from adamix.data import GenerationData, TaskData

GENERATION = "generation"


def load_rows(source: str, *, split: str, task_type: str | None) -> "TaskData | GenerationData":
    """One split of a data set. Raises as `data.load` and `data.load_generation` do."""
    from adamix import data as datasets
    from adamix.data.synthetic import SYNTHETIC_E2E

    if task_type is not None and task_type not in (GENERATION, *datasets.TASK_TYPES):
        known = ", ".join((*datasets.TASK_TYPES, GENERATION))
        raise InvalidConfig(f"--task-type must be one of {known}, not {task_type[:40]!r}", field="task_type")
    if task_type == GENERATION or (task_type is None and source == SYNTHETIC_E2E):
        return datasets.load_generation(source, split=split)
    return datasets.load(source, split=split, task_type=task_type)


def few_rows(rows: "TaskData | GenerationData", k: int, seed: int) -> "TaskData | GenerationData":
    """`k` rows in all, balanced over classes, or `k` sources with all their references. Raises InvalidConfig."""
    from adamix import data as datasets
    from adamix.data.few_shot import few_sources

    return few_sources(rows, k, seed) if isinstance(rows, datasets.GenerationData) else datasets.few_shot(rows, k, seed)


def type_of(rows: "TaskData | GenerationData") -> str:
    """The task type of some rows, as `--task-type` has it."""
    from adamix import data as datasets

    return GENERATION if isinstance(rows, datasets.GenerationData) else rows.task_type
