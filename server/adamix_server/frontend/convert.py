"""Internal values -> messages of `adamix.v1`. Pure functions; no I/O, no state.

What a head's raw output means is decided here and nowhere else: the engine returns logits, the manifest says how to
read them.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from adamix.errors import FailedPrecondition, InternalError
from adamix.manifest import BackboneSpec, HeadSpec
from adamix_protos.v1 import adapters_pb2, inference_pb2, server_pb2
from adamix_server import config, frames
from adamix_server.catalog.rows import TaskRow, VersionRow
from adamix_server.frontend.names import task_name, version_name

DEFAULT_THRESHOLD = 0.5

# Heads that `Predict` can read. The others speak through `Generate`.
PREDICT_HEADS = frozenset({"classification", "multilabel", "regression", "embedding"})

_RESIDENCY = {
    "store": adapters_pb2.RESIDENCY_STORE,
    "host": adapters_pb2.RESIDENCY_HOST,
    "device": adapters_pb2.RESIDENCY_DEVICE,
}


def to_prediction(head: HeadSpec, payload: bytes, *, return_logits: bool) -> inference_pb2.Prediction:
    """What a head's output says; `task` and `version` are left to the caller.

    Args:
        head: of the version that answered; one of `PREDICT_HEADS`.
        payload: little-endian fp32 [C]: logits, the score, or the embedding.
        return_logits: also give the raw output.

    Raises:
        FailedPrecondition: the output is not finite (`NON_FINITE_OUTPUT`).
        InternalError: the output has another size than the head.
    """
    logits = np.frombuffer(payload, dtype="<f4").astype(np.float64)
    if head.type == "embedding":
        is_whole = logits.size == head.dim if head.dim is not None else logits.size > 0
    else:
        is_whole = logits.size == head.num_labels
    if not is_whole:
        raise InternalError(f"a {head.type} head answered with {logits.size} values")
    if not np.isfinite(logits).all():
        raise FailedPrecondition(
            "this version's output for the input is not finite; its weights are unusable",
            reason="NON_FINITE_OUTPUT",
        )
    prediction = inference_pb2.Prediction(logits=logits.tolist() if return_logits else ())
    match head.type:
        case "classification":
            prediction.classification.CopyFrom(_classification(head, logits))
        case "multilabel":
            prediction.multi_label.CopyFrom(_multi_label(head, logits))
        case "regression":
            low, high = head.clip or (-np.inf, np.inf)
            prediction.regression.score = min(max(float(logits[0]), low), high)
        case "embedding":
            norm = float(np.linalg.norm(logits)) if head.normalize else 1.0
            prediction.embedding.values.extend((logits / (norm or 1.0)).tolist())
        case _:
            raise InternalError(f"a {head.type} head has no prediction")
    return prediction


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of one row of logits [C], computed in fp64."""
    powers = np.exp(logits - logits.max())
    result: NDArray[np.float64] = powers / powers.sum()
    return result


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Independent probabilities [C], without overflow for any finite logit."""
    result: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return result


def to_timing(timings: Iterable[frames.Timing], tokenize_s: float, last: frames.Timing | None) -> inference_pb2.Timing:
    """The timing of a call: per stage the slowest input, and the batch of the last one."""
    queue_s = load_s = compute_s = 0.0
    for timing in timings:
        queue_s = max(queue_s, timing.queue_s)
        load_s = max(load_s, timing.load_s)
        compute_s = max(compute_s, timing.compute_s)
    result = inference_pb2.Timing(queue_s=queue_s, load_s=load_s, tokenize_s=tokenize_s, compute_s=compute_s)
    if last is not None:
        result.batch_requests = last.batch_requests
        result.batch_tokens = last.batch_tokens
        result.batch_tasks = last.batch_tasks
    return result


def to_task(row: TaskRow) -> adapters_pb2.Task:
    """A task as the catalog holds it; head, labels and length are those of its live version."""
    task = adapters_pb2.Task(
        name=task_name(row.tenant, row.task),
        etag=row.etag,
        create_time=_timestamp(row.create_time_us),
        update_time=_timestamp(row.update_time_us),
        traffic=[adapters_pb2.Traffic(digest=part.digest, weight=part.weight) for part in row.traffic],
        unavailable_reason=row.unavailable_reason,
    )
    if row.live:
        manifest = row.live[0].manifest
        task.head_type = manifest.head.type
        task.max_length = manifest.max_length
        if manifest.head.type in ("classification", "multilabel"):
            task.labels.extend(manifest.head.labels)
    return task


def to_version(row: VersionRow, residency: object = None) -> adapters_pb2.Version:
    """A version as the catalog holds it. `residency` is what the engine says, if it was asked."""
    return adapters_pb2.Version(
        name=version_name(row.tenant, row.task, row.digest),
        digest=row.digest,
        state=f"VERSION_STATE_{row.state.name}",
        create_time=_timestamp(row.create_time_us),
        manifest_json=row.manifest_json,
        num_bytes=row.num_bytes,
        backbone_fingerprint=row.backbone_fingerprint,
        live=row.live,
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


def _classification(head: HeadSpec, logits: NDArray[np.float64]) -> inference_pb2.Classification:
    best = int(logits.argmax())
    return inference_pb2.Classification(label=_label(head, best), label_id=best, scores=softmax(logits).tolist())


def _multi_label(head: HeadSpec, logits: NDArray[np.float64]) -> inference_pb2.MultiLabel:
    scores = sigmoid(logits)
    threshold = DEFAULT_THRESHOLD if head.threshold is None else head.threshold
    chosen = [int(index) for index in np.flatnonzero(scores >= threshold)]
    return inference_pb2.MultiLabel(
        labels=[_label(head, index) for index in chosen], label_ids=chosen, scores=scores.tolist()
    )


def _label(head: HeadSpec, index: int) -> str:
    # One of `head.labels`, without making all of them for every prediction.
    return f"LABEL_{index}" if head.id2label is None else head.id2label[str(index)]


def _timestamp(time_us: int) -> Any:
    result = Timestamp()
    result.FromMicroseconds(time_us)
    return result
