"""Data of either form, by name or in memory: labelled text, or with task type `generation` sources with references."""

from adamix.data.few_shot import few_shot, few_sources
from adamix.data.generation.data import GenerationData
from adamix.data.generation.sources import load_generation
from adamix.data.generation.synthetic import SYNTHETIC_E2E
from adamix.data.memory import MemoryData
from adamix.data.sources import load
from adamix.data.task import TASK_TYPES, TaskData
from adamix.errors import InvalidConfig
from adamix.hub import nearest

GENERATION = "generation"


Source = str | MemoryData


def check_task_type(task_type: str | None) -> None:
    """Raise InvalidConfig unless it is one, or none is said."""
    known = (*TASK_TYPES, GENERATION)
    if task_type is not None and task_type not in known:
        near = nearest(task_type, known)
        raise InvalidConfig(
            f"--task-type must be one of {', '.join(known)}, not {task_type[:40]!r}{near}", field="task_type"
        )


def load_rows(source: Source, *, split: str, task_type: str | None) -> TaskData | GenerationData:
    """One split of a data set. Raises as `load` and `load_generation` do."""
    check_task_type(task_type)
    if isinstance(source, MemoryData):
        if task_type == GENERATION or (task_type is None and source.generates):
            return source.generation(split)
        return source.labelled(split, task_type)
    if task_type == GENERATION or (task_type is None and source == SYNTHETIC_E2E):
        return load_generation(source, split=split)
    return load(source, split=split, task_type=task_type)


def few_rows(rows: TaskData | GenerationData, k: int, seed: int) -> TaskData | GenerationData:
    """`k` rows in all, balanced over classes, or `k` sources with all their references. Raises InvalidConfig."""
    return few_sources(rows, k, seed) if isinstance(rows, GenerationData) else few_shot(rows, k, seed)


def type_of(rows: TaskData | GenerationData) -> str:
    """The task type of some rows, as `load_rows` takes it."""
    return GENERATION if isinstance(rows, GenerationData) else rows.task_type
