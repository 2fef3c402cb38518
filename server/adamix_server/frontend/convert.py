"""Internal values -> messages of `adamix.v1`. Pure functions; no I/O, no state.

What a head's raw output means is decided here and nowhere else: the engine returns logits, the manifest says how to
read them.
"""

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp

from adamix.errors import FailedPrecondition, InternalError
from adamix.manifest import BackboneSpec, HeadSpec
from adamix_protos.v1 import adapters_pb2, inference_pb2, server_pb2
from adamix_server import config, frames
from adamix_server.catalog.rows import TaskRow, VersionRow
from adamix_server.frontend.names import task_name, version_name

DEFAULT_THRESHOLD = 0.5

# Heads that `Predict` can read. The others speak through `Generate`.
PREDICT_HEADS = frozenset({"classification", "multilabel", "regression", "embedding"})

# Above so many, numpy is faster than plain floats.
_FEW_VALUES = 64

_RESIDENCY = {
    "store": adapters_pb2.RESIDENCY_STORE,
    "host": adapters_pb2.RESIDENCY_HOST,
    "device": adapters_pb2.RESIDENCY_DEVICE,
}


def fill_prediction(
    prediction: inference_pb2.Prediction, head: HeadSpec, payload: bytes, *, return_logits: bool
) -> None:
    """Write what a head's output says into an empty message; `task` and `version` are left to the caller.

    Args:
        prediction: left as it is by an error.
        head: of the version that answered; one of `PREDICT_HEADS`.
        payload: little-endian fp32 [C]: logits, the score, or the embedding.
        return_logits: also give the raw output.

    Raises:
        FailedPrecondition: the output is not finite (`NON_FINITE_OUTPUT`).
        InternalError: the output has another size than the head.
    """
    # Plain floats, because most heads have a few labels and each call of numpy costs more than all of them.
    size, rest = divmod(len(payload), 4)
    if rest or not (size == head.num_labels if head.type != "embedding" else _is_whole_embedding(head, size)):
        raise InternalError(f"a {head.type} head answered with {size} values")
    logits = struct.unpack(f"<{size}f", payload)
    # No sum of finite fp32 values overflows a double, and any other value makes it infinite or NaN.
    if not math.isfinite(sum(logits)):
        raise FailedPrecondition(
            "this version's output for the input is not finite; its weights are unusable",
            reason="NON_FINITE_OUTPUT",
        )
    match head.type:
        case "classification":
            found = prediction.classification
            best = logits.index(max(logits))
            found.label, found.label_id = _label(head, best), best
            found.scores.extend(softmax(logits))
        case "multilabel":
            _fill_multi_label(prediction.multi_label, head, logits)
        case "regression":
            low, high = head.clip or (-math.inf, math.inf)
            prediction.regression.score = min(max(logits[0], low), high)
        case "embedding":
            norm = math.hypot(*logits) if head.normalize else 1.0
            prediction.embedding.values.extend(logits if norm in (0.0, 1.0) else [value / norm for value in logits])
        case _:
            raise InternalError(f"a {head.type} head has no prediction")
    if return_logits:
        prediction.logits.extend(logits)


def softmax(logits: Sequence[float]) -> list[float]:
    """Probabilities of one row of logits [C], computed in fp64."""
    highest = max(logits)
    if len(logits) > _FEW_VALUES:
        powers = np.exp(np.subtract(logits, highest))
        probabilities: list[float] = (powers / powers.sum()).tolist()
        return probabilities
    few = [math.exp(value - highest) for value in logits]
    total = sum(few)
    return [power / total for power in few]


def sigmoid(logits: Sequence[float]) -> list[float]:
    """Independent probabilities [C], without overflow for any finite logit."""
    return [0.5 * (1.0 + math.tanh(0.5 * value)) for value in logits]


def fill_timing(message: inference_pb2.Timing, timings: Sequence[frames.Timing], tokenize_s: float) -> None:
    """Write the timing of a call: per stage that of the slowest input, and the batch of the last one."""
    message.tokenize_s = tokenize_s
    if timings:
        message.queue_s = max([timing.queue_s for timing in timings])
        message.load_s = max([timing.load_s for timing in timings])
        message.compute_s = max([timing.compute_s for timing in timings])
        last = timings[-1]
        message.batch_requests = last.batch_requests
        message.batch_tokens = last.batch_tokens
        message.batch_tasks = last.batch_tasks


def to_task(row: TaskRow) -> adapters_pb2.Task:
    """A task as the catalog holds it.

    Head and labels are those of the live version with the largest share, the length is one that every live version
    takes.
    """
    task = adapters_pb2.Task(
        name=task_name(row.tenant, row.task),
        etag=row.etag,
        create_time=_timestamp(row.create_time_us),
        update_time=_timestamp(row.update_time_us),
        traffic=[adapters_pb2.Traffic(digest=part.digest, weight=part.weight) for part in row.traffic],
        unavailable_reason=row.unavailable_reason,
    )
    if row.live:
        head = row.heaviest.head
        task.head_type = head.type
        task.max_length = min(version.max_length for version in row.live)
        if head.type in ("classification", "multilabel"):
            task.labels.extend(head.labels)
    return task


def to_change(tenant: str, task: str, row: TaskRow | None) -> adapters_pb2.WatchTasksResponse:
    """A task as it is now; without a row, that it was deleted."""
    if row is None:
        deleted = adapters_pb2.Task(name=task_name(tenant, task))
        return adapters_pb2.WatchTasksResponse(task=deleted, deleted=True)
    return adapters_pb2.WatchTasksResponse(task=to_task(row))


def to_version(row: VersionRow, manifest_json: str, residency: object = None) -> adapters_pb2.Version:
    """A version as the catalog holds it. `residency` is what the engine says, if it was asked."""
    return adapters_pb2.Version(
        name=version_name(row.tenant, row.task, row.digest),
        digest=row.digest,
        state=f"VERSION_STATE_{row.state.name}",
        create_time=_timestamp(row.create_time_us),
        manifest_json=manifest_json,
        num_bytes=row.num_bytes,
        backbone_fingerprint=row.backbone_fingerprint,
        live=row.live,
        pinned=row.pinned,
        residency=_RESIDENCY.get(str(residency), adapters_pb2.RESIDENCY_UNSPECIFIED),
    )


def to_backbone(spec: BackboneSpec) -> server_pb2.Backbone:
    """The backbone a server holds."""
    return server_pb2.Backbone(
        name=spec.label,
        model_type=spec.model_type,
        fingerprint=spec.fingerprint,
        tokenizer_fingerprint=spec.tokenizer_fingerprint,
        pooler_fingerprint=spec.pooler_fingerprint or "",
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        max_tokens=spec.max_tokens,
    )


def to_limits(limits: frames.Limits) -> server_pb2.Limits:
    """The published limits of one call, and the engine's."""
    return server_pb2.Limits(
        max_inputs_per_call=config.MAX_INPUTS_PER_CALL,
        max_text_bytes=config.MAX_TEXT_BYTES,
        max_message_bytes=config.MAX_MESSAGE_BYTES,
        max_batch_tokens=limits.max_batch_tokens,
        max_queue_inputs=limits.max_queue_inputs,
        max_queue_tokens=limits.max_queue_tokens,
        max_adapter_bytes=config.MAX_ADAPTER_BYTES,
        default_timeout_s=config.DEFAULT_TIMEOUT_S,
        max_timeout_s=config.MAX_TIMEOUT_S,
    )


def _is_whole_embedding(head: HeadSpec, size: int) -> bool:
    return size == head.dim if head.dim is not None else size > 0


def _fill_multi_label(found: inference_pb2.MultiLabel, head: HeadSpec, logits: Sequence[float]) -> None:
    scores = sigmoid(logits)
    threshold = DEFAULT_THRESHOLD if head.threshold is None else head.threshold
    chosen = [index for index, score in enumerate(scores) if score >= threshold]
    found.labels.extend([_label(head, index) for index in chosen])
    found.label_ids.extend(chosen)
    found.scores.extend(scores)


def _label(head: HeadSpec, index: int) -> str:
    # One of `head.labels`, without making all of them for every prediction.
    return f"LABEL_{index}" if head.id2label is None else head.id2label[str(index)]


def _timestamp(time_us: int) -> Any:
    result = Timestamp()
    result.FromMicroseconds(time_us)
    return result
