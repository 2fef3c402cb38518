"""What a labelled data set is once it is read and checked, and which split a text belongs to.

Knows neither where the texts came from nor what a model does with them.
"""

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Literal, get_args

from adamix.errors import InvalidData

TaskType = Literal["classification", "multilabel", "regression"]
Split = Literal["train", "validation", "test"]

TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)
SPLITS: tuple[Split, ...] = get_args(Split)

_TRAIN_END = 0.8
_VALIDATION_END = 0.9


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text, or pair of texts.

    `label` is a class id (classification), the target in its natural units (regression), or the sorted ids of all
    labels that hold, possibly none (multilabel).
    """

    text: str
    label: int | float | tuple[int, ...]
    pair: str | None = None


@dataclass(frozen=True)
class TaskData:
    """One split of a labelled data set.

    `labels` names the label ids of the whole data set, not only those that occur in this split; it is empty for
    regression. Either every example has a `pair` or none has.

    Raises:
        InvalidData: `task_type` is unknown, or a label is of another type than it asks for or out of range.
    """

    name: str
    task_type: TaskType
    labels: tuple[str, ...]
    examples: tuple[Example, ...]

    def __post_init__(self) -> None:
        if self.task_type not in TASK_TYPES:
            raise InvalidData(f"task type {self.task_type!r} is not one of {', '.join(TASK_TYPES)}")
        if (self.task_type == "regression") != (not self.labels):
            raise InvalidData(f"{self.name}: exactly the regression tasks have no label names")
        for index, example in enumerate(self.examples):
            if not _label_fits(example.label, self.task_type, len(self.labels)):
                raise InvalidData(
                    f"{self.name}: example {index} has the label {example.label!r}, which a {self.task_type} task "
                    f"with {len(self.labels)} labels cannot have"
                )


def split_of(text: str, pair: str | None = None) -> Split:
    """The split a text belongs to, where its source does not say: 80 % train, 10 % validation, 10 % test.

    A hash of the normalised text (NFKC, case folded, white space collapsed; a pair counts as one text) decides, so
    the answer is the same on every machine and for every order of the rows, and no text is in two splits.
    """
    document = text if pair is None else f"{text}\n{pair}"
    normalised = " ".join(unicodedata.normalize("NFKC", document).casefold().split())
    digest = hashlib.sha256(normalised.encode("utf-8")).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    if fraction < _TRAIN_END:
        return "train"
    return "validation" if fraction < _VALIDATION_END else "test"


def _label_fits(label: object, task_type: TaskType, num_labels: int) -> bool:
    if task_type == "regression":
        return isinstance(label, float | int) and not isinstance(label, bool)
    ids = label if task_type == "multilabel" else (label,)
    if not isinstance(ids, tuple) or list(ids) != sorted(set(ids)):
        return False
    return all(type(i) is int and 0 <= i < num_labels for i in ids)
