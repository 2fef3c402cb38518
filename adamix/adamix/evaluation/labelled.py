"""Measure a merged adapter with plain, padded transformers: the reference that the server's answers are held against.

Shares no code with the server's packed path but the table of sites and the file format.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone
from adamix.data import Example, TaskData, TaskType
from adamix.errors import FailedPrecondition, InvalidData
from adamix.evaluation.metrics import positive_class, score
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import HeadSpec, Manifest
from adamix.modules.attach import attach
from adamix.modules.heads import TaskModel
from adamix.rows import cloze
from adamix.rows.labelled import TokenRow, collate, target_tensor, tokenize

DEFAULT_BATCH_SIZE = 32

Prediction = str | float | list[str]


@dataclass(frozen=True)
class Evaluation:
    """What an adapter did on one data set.

    Attributes:
        metrics: see `metrics.score`.
        rows: examples evaluated.
        truncated: of these, texts that were cut to the adapter's `max_length`.
        predictions: for each row a label name, the names of all labels over the threshold, or a number.
        logits: for each row, what the head put out; of a regression the unclipped value in natural units.
    """

    metrics: dict[str, float]
    rows: int
    truncated: int
    predictions: list[Prediction]
    logits: list[list[float]]


@dataclass(frozen=True)
class LabelledRows:
    """Tokenised rows of a data set, and their labels as an adapter counts them: see `adapter_targets`."""

    task_type: TaskType
    tokens: list[TokenRow]
    targets: NDArray[Any]
    pad_id: int


def evaluate(
    adapter: AdapterFile,
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    data: TaskData,
    *,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_rows: Callable[[int], None] | None = None,
) -> Evaluation:
    """Evaluate an adapter on labelled text.

    Labels are matched by name: the data may list them in another order than the adapter, or lack some.

    Args:
        on_rows: called after each batch with the number of rows it had.

    Raises:
        InvalidAdapter: the adapter does not fit the backbone.
        InvalidData: the data are of another task type, have a label the adapter does not know, or have no rows.
        FailedPrecondition: the adapter's head has nothing to compare with labels (an embedding, a language model).
    """
    rows = label_rows(adapter.manifest, backbone, tokenizer, data)
    model = attach(adapter, backbone)
    logits = predict(model, rows.tokens, pad_id=rows.pad_id, batch_size=batch_size, on_rows=on_rows)
    return judge(adapter.manifest.head, logits, rows)


def label_rows(
    manifest: Manifest, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, data: TaskData
) -> LabelledRows:
    """The rows of a data set for an adapter with this manifest. Raises as `evaluate` does of data."""
    spec = manifest.head
    task_type = label_type(spec)
    if data.task_type != task_type:
        raise InvalidData(f"{data.name} is a {data.task_type} task, but the adapter is for {task_type}")
    if not data.examples:
        raise InvalidData(f"{data.name} has no rows to evaluate")
    targets = adapter_targets(spec, data)
    return LabelledRows(
        data.task_type,
        token_rows(manifest, backbone, tokenizer, data.examples),
        targets,
        tokenizer.pad_token_id or 0,
    )


def label_type(spec: HeadSpec) -> TaskType:
    """The task type of the labels that a head gives; a cloze head classifies.

    Raises:
        FailedPrecondition: it gives none (an embedding, a language model).
    """
    found: TaskType | None = next((known for known in get_args(TaskType) if known == spec.type), None)
    if spec.type == "cloze":
        return "classification"
    if found is None:
        raise FailedPrecondition(f"an adapter with a head of type {spec.type} cannot be evaluated on labels")
    return found


def token_rows(
    manifest: Manifest, backbone: Backbone, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]
) -> list[TokenRow]:
    """Texts as an adapter with this manifest reads them."""
    has_types, max_length = backbone.spec.type_vocab_size > 1, manifest.max_length
    if manifest.head.type == "cloze":
        return cloze.token_rows(manifest.head, tokenizer, examples, max_length=max_length, has_types=has_types)
    return tokenize(tokenizer, examples, max_length=max_length, has_types=has_types)


def judge(spec: HeadSpec, logits: Tensor, rows: LabelledRows) -> Evaluation:
    """What a head decides by its logits `[N, C]`, and how that compares with the rows' labels."""
    predicted = _decide(spec, logits.numpy())
    positive = positive_class(spec.labels)
    return Evaluation(
        metrics=score(rows.task_type, predicted, rows.targets, num_labels=spec.num_labels, positive=positive),
        rows=len(rows.tokens),
        truncated=sum(row.is_truncated for row in rows.tokens),
        predictions=_name(spec, predicted),
        logits=logits.tolist(),
    )


def adapter_targets(spec: HeadSpec, data: TaskData) -> NDArray[Any]:
    """The targets of labelled text as a head counts its labels, which it knows by name.

    Returns:
        class ids int64 `[N]`, zeros and ones int64 `[N, C]` (multi-label), or values fp32 `[N]`.

    Raises:
        InvalidData: the data have a label that the head does not know.
    """
    label_ids = _label_ids(spec, data)
    targets: NDArray[Any] = target_tensor(data.examples, data.task_type, len(data.labels)).numpy()
    if data.task_type == "classification":
        return np.asarray(label_ids[targets])
    return targets if data.task_type == "regression" else _spread(targets, label_ids, spec.num_labels)


@torch.inference_mode()
def predict(
    model: TaskModel,
    rows: list[TokenRow],
    *,
    pad_id: int,
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_rows: Callable[[int], None] | None = None,
    before_batch: Callable[[list[int]], None] | None = None,
) -> Tensor:
    """Logits fp32 `[rows, C]` on the CPU, in the order of the rows. Longest rows run first, for little padding.

    Args:
        on_rows: called after each batch with the number of rows it had.
        before_batch: called before each batch with the numbers of its rows.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    parts: list[Tensor] = []
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([rows[index] for index in chosen], pad_id)
        if before_batch is not None:
            before_batch(chosen)
        parts.append(model(**{name: tensor.to(device) for name, tensor in batch.items()}).float().cpu())
        if on_rows is not None:
            on_rows(len(chosen))
    logits = torch.cat(parts)
    result = torch.empty_like(logits)
    result[order] = logits
    return result


def _label_ids(spec: HeadSpec, data: TaskData) -> NDArray[np.int64]:
    """The adapter's label id for each label id of the data."""
    if spec.id2label is None and len(data.labels) == spec.num_labels:
        return np.arange(spec.num_labels)
    known = {name: index for index, name in enumerate(spec.labels)}
    unknown = [name for name in data.labels if name not in known]
    if unknown:
        raise InvalidData(f"{data.name} has the label {unknown[0]!r}; the adapter knows {', '.join(known)[:200]}")
    return np.array([known[name] for name in data.labels], dtype=np.int64)


def _spread(targets: NDArray[Any], label_ids: NDArray[np.int64], num_labels: int) -> NDArray[np.int64]:
    """Multi-hot targets with each column at the adapter's label id."""
    result = np.zeros((len(targets), num_labels), dtype=np.int64)
    result[:, label_ids] = targets
    return result


def _decide(spec: HeadSpec, logits: NDArray[np.float32]) -> NDArray[Any]:
    """Class ids `[N]`, zeros and ones `[N, C]`, or values `[N]`."""
    if label_type(spec) == "classification":
        return np.asarray(np.argmax(logits, axis=-1))
    if spec.type == "multilabel":
        return (1.0 / (1.0 + np.exp(-logits.astype(np.float64))) >= spec.effective_threshold).astype(np.int64)
    values: NDArray[Any] = logits[:, 0].astype(np.float64)
    return values if spec.clip is None else values.clip(*spec.clip)


def _name(spec: HeadSpec, predicted: NDArray[Any]) -> list[Prediction]:
    labels = spec.labels
    if label_type(spec) == "classification":
        return [labels[index] for index in predicted]
    if spec.type == "multilabel":
        return [[labels[index] for index in np.flatnonzero(row)] for row in predicted]
    return cast("list[Prediction]", predicted.tolist())
