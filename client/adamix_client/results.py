"""What a task answers: one immutable value for each kind of head. What a head's numbers mean is the server's to say."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Classification:
    """`scores` are the probabilities of all labels, in label-id order."""

    label: str
    label_id: int
    scores: tuple[float, ...]


@dataclass(frozen=True)
class MultiLabel:
    """The labels at or above the task's threshold; `scores` of all labels, in label-id order."""

    labels: tuple[str, ...]
    label_ids: tuple[int, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Regression:
    score: float


@dataclass(frozen=True)
class Embedding:
    values: tuple[float, ...]


Result = Classification | MultiLabel | Regression | Embedding
