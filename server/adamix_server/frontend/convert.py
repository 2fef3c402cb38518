"""Internal values -> messages of `adamix.v1`. Pure functions; no I/O, no state.

What a head's raw output means is said in `api.answers`.
"""

from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from adamix.files.manifest import BackboneSpec
from adamix_client.results import Classification, Embedding, MultiLabel, Regression, Result
from adamix_protos.v1 import adapters_pb2, inference_pb2, server_pb2
from adamix_server.api.resource_names import task_name, version_name
from adamix_server.catalog.rows import TaskRow, VersionRow
from adamix_server.channel import engine_frames
from adamix_server.limits.adapters import MAX_ADAPTER_BYTES
from adamix_server.limits.messages import (
    DEFAULT_TIMEOUT_S,
    MAX_INPUTS_PER_CALL,
    MAX_MESSAGE_BYTES,
    MAX_TEXT_BYTES,
    MAX_TIMEOUT_S,
)

_RESIDENCY = {
    "store": adapters_pb2.RESIDENCY_STORE,
    "host": adapters_pb2.RESIDENCY_HOST,
    "device": adapters_pb2.RESIDENCY_DEVICE,
}


def fill_result(prediction: inference_pb2.Prediction, result: Result) -> None:
    """Write an answer into a message without one; `task`, `version` and `logits` are left to the caller."""
    match result:
        case Classification():
            classes = prediction.classification
            classes.label, classes.label_id = result.label, result.label_id
            classes.scores.extend(result.scores)
        case MultiLabel():
            tags = prediction.multi_label
            tags.labels.extend(result.labels)
            tags.label_ids.extend(result.label_ids)
            tags.scores.extend(result.scores)
        case Regression():
            prediction.regression.score = result.score
        case Embedding():
            prediction.embedding.values.extend(result.values)


def fill_timing(message: inference_pb2.Timing, timings: Sequence[engine_frames.Timing], tokenize_s: float) -> None:
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


def to_task(row: TaskRow, unavailable_reason: str) -> adapters_pb2.Task:
    """A task as the catalog holds it, and why it cannot be answered, as far as that is known.

    Head and labels are those of the live version with the largest share, the length is one that every live version
    takes.
    """
    task = adapters_pb2.Task(
        name=task_name(row.tenant, row.task),
        etag=row.etag,
        create_time=_timestamp(row.create_time_us),
        update_time=_timestamp(row.update_time_us),
        traffic=[adapters_pb2.Traffic(digest=part.digest, weight=part.weight) for part in row.traffic],
        unavailable_reason=unavailable_reason,
    )
    if row.live:
        head = row.heaviest.head
        task.head_type = head.type
        task.max_length = min(version.max_length for version in row.live)
        if head.type in ("classification", "multilabel"):
            task.labels.extend(head.labels)
    return task


def to_change(tenant: str, task: str, row: TaskRow | None, unavailable_reason: str) -> adapters_pb2.WatchTasksResponse:
    """A task as it is now; without a row, that it was deleted."""
    if row is None:
        deleted = adapters_pb2.Task(name=task_name(tenant, task))
        return adapters_pb2.WatchTasksResponse(task=deleted, deleted=True)
    return adapters_pb2.WatchTasksResponse(task=to_task(row, unavailable_reason))


def to_version(
    row: VersionRow, manifest_json: str, residency: object = None, quarantine_reason: str = ""
) -> adapters_pb2.Version:
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
        quarantined=bool(quarantine_reason),
        quarantine_reason=quarantine_reason,
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


def to_limits(of_engine: engine_frames.Limits) -> server_pb2.Limits:
    """The published limits of one call, and the engine's."""
    return server_pb2.Limits(
        max_inputs_per_call=MAX_INPUTS_PER_CALL,
        max_text_bytes=MAX_TEXT_BYTES,
        max_message_bytes=MAX_MESSAGE_BYTES,
        max_batch_tokens=of_engine.max_batch_tokens,
        max_queue_inputs=of_engine.max_queue_inputs,
        max_queue_tokens=of_engine.max_queue_tokens,
        max_adapter_bytes=MAX_ADAPTER_BYTES,
        default_timeout_s=DEFAULT_TIMEOUT_S,
        max_timeout_s=MAX_TIMEOUT_S,
    )


def _timestamp(time_us: int) -> Any:
    result = Timestamp()
    result.FromMicroseconds(time_us)
    return result
