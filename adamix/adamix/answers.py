"""What a task answers: one immutable value for each kind of head, and how a head's raw output becomes one.

What an output means is decided here and nowhere else, for the server as for a prediction without one: a model returns
logits, the manifest says how to read them. The values are the client's. Knows no message, no manifest and no torch.
"""

import math
import struct
from collections.abc import Sequence
from typing import Protocol

from adamix.errors import FailedPrecondition, InternalError
from adamix_client.results import Classification, Embedding, MultiLabel, Regression, Result

# Heads that `Predict` can read. The others speak through `Generate`.
PREDICT_HEADS = frozenset({"classification", "multilabel", "regression", "embedding"})

# Above so many, numpy is faster than plain floats.
_FEW_VALUES = 64


class Head(Protocol):
    """What must be known of a head to read its output: `adamix.files.manifest.HeadSpec` knows it.

    Attributes:
        type: one of `PREDICT_HEADS`.
        num_labels: numbers in the output, but for an embedding, which has `dim` or, where that is None, any.
        effective_threshold: score from which on a label of a multilabel head is given.
        clip: bounds of a regression.
        normalize: an embedding is scaled to length 1.
    """

    @property
    def type(self) -> str: ...
    @property
    def num_labels(self) -> int: ...
    @property
    def effective_threshold(self) -> float: ...
    @property
    def clip(self) -> tuple[float, float] | None: ...
    @property
    def normalize(self) -> bool | None: ...
    @property
    def dim(self) -> int | None: ...
    def label(self, index: int) -> str: ...


def read(head: Head, payload: bytes) -> Result:
    """What a head's output says.

    Args:
        payload: little-endian fp32 [C]: logits, the score, or the embedding.

    Raises:
        FailedPrecondition: the output is not finite (`NON_FINITE_OUTPUT`).
        InternalError: the output has another size than the head.
    """
    kind = head.type
    size, rest = divmod(len(payload), 4)
    if rest or not (size == head.num_labels if kind != "embedding" else _is_whole_embedding(head, size)):
        raise InternalError(f"a {kind} head answered with {size} values")
    return interpret(head, struct.unpack(f"<{size}f", payload))


def interpret(head: Head, output: Sequence[float]) -> Result:
    """What the numbers [C] of a head say, of which there are as many as it has.

    Raises:
        FailedPrecondition: they are not finite (`NON_FINITE_OUTPUT`).
        InternalError: the head has no such answer.
    """
    kind = head.type
    # Plain floats, because most heads have a few labels and each call of numpy costs more than all of them.
    # No sum of finite fp32 values overflows a double, and any other value makes it infinite or NaN.
    if not math.isfinite(sum(output)):
        raise output_not_finite()
    match kind:
        case "classification":
            highest = max(output)
            best = output.index(highest)
            return Classification(head.label(best), best, _softmax(output, highest))
        case "multilabel":
            scores, threshold = _sigmoid(output), head.effective_threshold
            chosen = tuple([index for index, score in enumerate(scores) if score >= threshold])
            return MultiLabel(tuple(map(head.label, chosen)), chosen, scores)
        case "regression":
            low, high = head.clip or (-math.inf, math.inf)
            return Regression(min(max(output[0], low), high))
        case "embedding":
            norm = math.hypot(*output) if head.normalize else 1.0
            return Embedding(tuple(output) if norm in (0.0, 1.0) else tuple([value / norm for value in output]))
        case _:
            raise InternalError(f"a {kind} head has no prediction")


def output_not_finite() -> FailedPrecondition:
    """What is said of an input for which a version gives values that are not finite."""
    return FailedPrecondition(
        "this version's output for the input is not finite; its weights are unusable", reason="NON_FINITE_OUTPUT"
    )


def unpack(payload: bytes) -> tuple[float, ...]:
    """The numbers of a raw output, little-endian fp32 [C]."""
    return struct.unpack(f"<{len(payload) // 4}f", payload)


def _softmax(logits: Sequence[float], highest: float) -> tuple[float, ...]:
    """Probabilities of one row of logits [C], of which `highest` is the largest, computed in fp64."""
    if len(logits) > _FEW_VALUES:
        # Imported only here: a client process never needs it.
        import numpy as np

        powers = np.exp(np.subtract(logits, highest))
        return tuple((powers / powers.sum()).tolist())
    few = [math.exp(value - highest) for value in logits]
    total = sum(few)
    return tuple([power / total for power in few])


def _sigmoid(logits: Sequence[float]) -> tuple[float, ...]:
    """Independent probabilities [C], without overflow for any finite logit."""
    return tuple([0.5 * (1.0 + math.tanh(0.5 * value)) for value in logits])


def _is_whole_embedding(head: Head, size: int) -> bool:
    return size == head.dim if head.dim is not None else size > 0
