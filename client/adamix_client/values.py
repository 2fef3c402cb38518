"""What the client takes and gives: plain immutable values, and their messages on the wire. No connection here."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict

from adamix_client import status
from adamix_client.errors import AdamixError, InvalidConfig, InvalidData
from adamix_client.results import Classification, Embedding, MultiLabel, Regression, Result
from adamix_protos.v1 import adapters_pb2, inference_pb2

AnyResult = TypeVar("AnyResult", Classification, MultiLabel, Regression, Embedding)


@dataclass(frozen=True)
class Input:
    """One input of a call: a task and exactly one of `text`, `pair` and `token_ids`.

    `truncate` drops tokens at the right end of a text that is too long for its task, which is an error otherwise.
    """

    task: str
    text: str | None = None
    pair: tuple[str, str] | None = None
    token_ids: Sequence[int] | None = None
    version: str = ""
    truncate: bool = False


@dataclass(frozen=True)
class StreamInput:
    """One input of a stream. `id` (1 to 64 bytes) is unlike that of any other input that is not answered yet.

    `timeout_s` of 0 is the server's default.
    """

    id: str
    input: Input
    return_logits: bool = False
    timeout_s: float = 0.0


@dataclass(frozen=True)
class Prediction:
    """The answer to one input: `result`, or `error` if this input failed. `version` is the digest that answered.

    What reads the result for you raises the error, where there is one, and InvalidConfig where the task answers with
    something else.
    """

    task: str
    version: str
    result: Result | None
    error: AdamixError | None
    logits: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        """Of a classification: the likeliest."""
        return self._result(Classification, "label").label

    @property
    def labels(self) -> tuple[str, ...]:
        """Of a task with several labels: those at or above its threshold."""
        return self._result(MultiLabel, "labels").labels

    @property
    def score(self) -> float:
        """Of a classification: its label's probability. Of a regression: the number itself."""
        if isinstance(self.result, Regression):
            return self.result.score
        found = self._result(Classification, "score")
        return found.scores[found.label_id]

    @property
    def embedding(self) -> tuple[float, ...]:
        return self._result(Embedding, "embedding").values

    def _result(self, kind: type[AnyResult], name: str) -> AnyResult:
        if self.error is not None:
            raise self.error
        if not isinstance(self.result, kind):
            raise InvalidConfig(f"{self.task} answers with a {type(self.result).__name__}, which has no {name}")
        return self.result


@dataclass(frozen=True)
class Timing:
    """Where a call's time went, in seconds, and the batch that answered its last input."""

    queue_s: float
    load_s: float
    tokenize_s: float
    compute_s: float
    batch_requests: int
    batch_tokens: int
    batch_tasks: int


class Predictions(list[Prediction]):
    """One prediction per input, in order: a list, with the time that its calls took.

    Args:
        timings: of the calls, in order.
    """

    def __init__(self, predictions: Iterable[Prediction], timings: Sequence[Timing] = ()) -> None:
        super().__init__(predictions)
        self.timings = tuple(timings)

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        return tuple(self)

    @property
    def timing(self) -> Timing:
        """Of its one call; of several the sums, and the batch of the last."""
        if len(self.timings) == 1:
            return self.timings[0]
        last = self.timings[-1] if self.timings else Timing(0, 0, 0, 0, 0, 0, 0)
        return replace(
            last,
            queue_s=sum(one.queue_s for one in self.timings),
            load_s=sum(one.load_s for one in self.timings),
            tokenize_s=sum(one.tokenize_s for one in self.timings),
            compute_s=sum(one.compute_s for one in self.timings),
        )


@dataclass(frozen=True)
class StreamedPrediction:
    """The answer to the input of a stream with this id."""

    id: str
    prediction: Prediction
    timing: Timing


@dataclass(frozen=True)
class Version:
    """One version of a task. `state` and `residency` are the names of the API without their prefix."""

    name: str
    digest: str
    state: str
    create_time: datetime
    manifest: dict[str, Any]
    num_bytes: int
    backbone_fingerprint: str
    live: bool
    residency: str
    pinned: bool
    quarantined: bool = False
    quarantine_reason: str = ""


@dataclass(frozen=True)
class ServerFile:
    """An adapter file that the server has: its path below the server's adapter root, with `/` between parts."""

    name: str


@dataclass(frozen=True)
class Registered:
    """`already_exists`: the task already had a version with these bytes."""

    version: Version
    already_exists: bool


@dataclass(frozen=True)
class Task:
    """One task. `traffic` holds (digest, weight) pairs of what answers now."""

    name: str
    etag: str
    create_time: datetime
    update_time: datetime
    traffic: tuple[tuple[str, int], ...]
    head_type: str
    labels: tuple[str, ...]
    max_length: int
    unavailable_reason: str

    @property
    def task(self) -> str:
        """The bare id."""
        return self.name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class TaskChange:
    """How a task stands now. `name` is its resource name; `task` is None if it was deleted."""

    name: str
    task: Task | None


@dataclass(frozen=True)
class Load:
    """How busy an engine is. `running_inputs` is the largest batch of the last second."""

    queued_inputs: int
    queued_tokens: int
    running_inputs: int
    resident_adapters: int
    slots: int


@dataclass(frozen=True)
class ServerInfo:
    """What a server is. `backbone` and `limits` hold the fields of the messages of the same names."""

    backbone: dict[str, Any]
    limits: dict[str, Any]
    compute_dtype: str
    quantisation: str
    server_version: str
    device: str


def to_input(item: Input) -> inference_pb2.PredictInput:
    if sum(part is not None for part in (item.text, item.pair, item.token_ids)) != 1:
        raise InvalidConfig("an input has exactly one of text, pair and token_ids")
    truncation = inference_pb2.TRUNCATION_RIGHT if item.truncate else inference_pb2.TRUNCATION_ERROR
    try:
        message = inference_pb2.PredictInput(task=item.task, version=item.version, truncation=truncation)
        if item.text is not None:
            message.text = item.text
        elif item.pair is not None:
            message.pair.first, message.pair.second = item.pair
        elif item.token_ids is not None:
            message.token_ids.CopyFrom(inference_pb2.TokenIds(ids=item.token_ids))
    except UnicodeEncodeError:
        raise InvalidData("the text is not valid Unicode: it holds half of a surrogate pair") from None
    except (ValueError, TypeError):
        if item.token_ids is None:
            raise InvalidData("what is no str is given as task, version or text") from None
        raise InvalidData("token_ids is not a list of 32-bit integers") from None
    return message


def to_stream_request(item: StreamInput) -> inference_pb2.PredictStreamRequest:
    try:
        return inference_pb2.PredictStreamRequest(
            id=item.id, input=to_input(item.input), return_logits=item.return_logits, timeout_s=item.timeout_s
        )
    except UnicodeEncodeError:
        raise InvalidData("the id is not valid Unicode: it holds half of a surrogate pair") from None


def to_streamed_prediction(message: inference_pb2.PredictStreamResponse) -> StreamedPrediction:
    return StreamedPrediction(message.id, to_prediction(message.prediction), to_timing(message.timing))


def to_timing(message: inference_pb2.Timing) -> Timing:
    return Timing(
        queue_s=message.queue_s,
        load_s=message.load_s,
        tokenize_s=message.tokenize_s,
        compute_s=message.compute_s,
        batch_requests=message.batch_requests,
        batch_tokens=message.batch_tokens,
        batch_tasks=message.batch_tasks,
    )


def to_prediction(message: inference_pb2.Prediction) -> Prediction:
    result: Result | None = None
    error: AdamixError | None = None
    match message.WhichOneof("result"):
        case "classification":
            found = message.classification
            result = Classification(found.label, found.label_id, tuple(found.scores))
        case "multi_label":
            several = message.multi_label
            result = MultiLabel(tuple(several.labels), tuple(several.label_ids), tuple(several.scores))
        case "regression":
            result = Regression(message.regression.score)
        case "embedding":
            result = Embedding(tuple(message.embedding.values))
        case "error":
            error = status.from_status(message.error)
        case _:
            error = AdamixError("the server's answer is of a kind this client does not know")
    return Prediction(message.task, message.version, result, error, tuple(message.logits))


def to_version(message: adapters_pb2.Version) -> Version:
    return Version(
        name=message.name,
        digest=message.digest,
        state=adapters_pb2.VersionState.Name(message.state).removeprefix("VERSION_STATE_"),
        create_time=message.create_time.ToDatetime(UTC),
        manifest=json.loads(message.manifest_json or "{}"),
        num_bytes=message.num_bytes,
        backbone_fingerprint=message.backbone_fingerprint,
        live=message.live,
        residency=adapters_pb2.Residency.Name(message.residency).removeprefix("RESIDENCY_"),
        pinned=message.pinned,
        quarantined=message.quarantined,
        quarantine_reason=message.quarantine_reason,
    )


def to_task(message: adapters_pb2.Task) -> Task:
    return Task(
        name=message.name,
        etag=message.etag,
        create_time=message.create_time.ToDatetime(UTC),
        update_time=message.update_time.ToDatetime(UTC),
        traffic=tuple((part.digest, part.weight) for part in message.traffic),
        head_type=message.head_type,
        labels=tuple(message.labels),
        max_length=message.max_length,
        unavailable_reason=message.unavailable_reason,
    )


def to_task_change(message: adapters_pb2.WatchTasksResponse) -> TaskChange:
    return TaskChange(message.task.name, None if message.deleted else to_task(message.task))


def to_json(message: Any) -> dict[str, Any]:
    result: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return result
