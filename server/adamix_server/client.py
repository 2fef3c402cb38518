"""A small typed client: one method per RPC, plain values in and out, errors of `adamix.errors`.

Synchronous and safe to share between threads. Retries nothing by itself: an error that may pass says so in
`retry_after_s`. Imports no torch, so that a client process stays small. Knows the wire; knows nothing of the server.
"""

import io
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adamix.errors import AdamixError, Code, InvalidConfig, InvalidData, Unavailable
from adamix_protos.v1 import (
    adapters_pb2,
    adapters_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    server_pb2,
    server_pb2_grpc,
)
from adamix_server.config import DEFAULT_TIMEOUT_S, MAX_MESSAGE_BYTES, MAX_TIMEOUT_S
from adamix_server.frontend import status

_CHUNK_BYTES = 512 << 10
_POLL_S = 0.1
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
)


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


@dataclass(frozen=True)
class Prediction:
    """The answer to one input: `result`, or `error` if this input failed. `version` is the digest that answered."""

    task: str
    version: str
    result: Result | None
    error: AdamixError | None
    logits: tuple[float, ...] = ()


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


@dataclass(frozen=True)
class Predictions:
    """One prediction per input, in order."""

    predictions: tuple[Prediction, ...]
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
class ServerInfo:
    """What a server is. `backbone` and `limits` hold the fields of the messages of the same names."""

    backbone: dict[str, Any]
    limits: dict[str, Any]
    compute_dtype: str
    quantisation: str
    server_version: str
    device: str


class Client:
    """A connection to one server.

    Args:
        address: `host:port`.
        timeout_s: limit of each call but uploads, in seconds.

    Every method raises the AdamixError the server answered with, or Unavailable when there is no server.
    """

    def __init__(self, address: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._adapters = adapters_pb2_grpc.AdapterServiceStub(self._channel)
        self._server = server_pb2_grpc.ServerServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def predict(
        self,
        inputs: Iterable[Input] = (),
        *,
        task: str = "",
        texts: Iterable[str] = (),
        truncate: bool = False,
        return_logits: bool = False,
    ) -> Predictions:
        """Answer up to 64 inputs in one call: `inputs`, then `texts`, which are all for `task`.

        An input that fails leaves an `error` in its place; the call raises when all fail for the same reason.
        """
        return _predictions(self._predict(inputs, task, texts, truncate, return_logits))

    def predict_json(
        self,
        inputs: Iterable[Input] = (),
        *,
        task: str = "",
        texts: Iterable[str] = (),
        truncate: bool = False,
        return_logits: bool = False,
    ) -> dict[str, Any]:
        """As `predict`; the response in proto3 JSON with proto field names and default-valued fields printed."""
        return _to_json(self._predict(inputs, task, texts, truncate, return_logits))

    def register(
        self,
        task: str,
        adapter: Path | str | bytes,
        *,
        expected_digest: str = "",
        make_live: bool = True,
        validate_only: bool = False,
    ) -> Registered:
        """Upload an adapter file, given by its path or as bytes; returns when it is stored (and live, if asked for).

        Raises:
            InvalidData: there is no such file here.
            InvalidInput: the server refuses the file; the reason says which check it failed.
        """
        header = adapters_pb2.RegisterAdapterHeader(
            task=task, expected_digest=expected_digest, make_live=make_live, validate_only=validate_only
        )
        requests = _upload(header, _chunks(adapter))
        with self._errors():
            response = self._adapters.RegisterAdapter(requests, timeout=MAX_TIMEOUT_S)
        return Registered(_version(response.version), response.already_exists)

    def get_task(self, task: str) -> Task:
        with self._errors():
            response = self._adapters.GetTask(adapters_pb2.GetTaskRequest(task=task), timeout=self._timeout_s)
        return _task(response.task)

    def tasks(self) -> list[Task]:
        """All tasks by name."""
        found: list[Task] = []
        token = ""
        while True:
            request = adapters_pb2.ListTasksRequest(page_token=token)
            with self._errors():
                response = self._adapters.ListTasks(request, timeout=self._timeout_s)
            found += [_task(message) for message in response.tasks]
            if not (token := response.next_page_token):
                return found

    def versions(self, task: str) -> list[Version]:
        """All versions of a task, newest first."""
        found: list[Version] = []
        token = ""
        while True:
            request = adapters_pb2.ListVersionsRequest(task=task, page_token=token)
            with self._errors():
                response = self._adapters.ListVersions(request, timeout=self._timeout_s)
            found += [_version(message) for message in response.versions]
            if not (token := response.next_page_token):
                return found

    def delete_task(self, task: str, *, etag: str = "") -> None:
        request = adapters_pb2.DeleteTaskRequest(task=task, etag=etag)
        with self._errors():
            self._adapters.DeleteTask(request, timeout=self._timeout_s)

    def rollback(self, task: str, *, etag: str = "") -> Task:
        """Make live again what was live before."""
        request = adapters_pb2.RollbackRequest(task=task, etag=etag)
        with self._errors():
            response = self._adapters.Rollback(request, timeout=self._timeout_s)
        return _task(response.task)

    def set_traffic(self, task: str, digest: str, *, etag: str = "") -> Task:
        """Let one version answer a task."""
        traffic = [adapters_pb2.Traffic(digest=digest, weight=1)]
        request = adapters_pb2.SetTrafficRequest(task=task, traffic=traffic, etag=etag)
        with self._errors():
            response = self._adapters.SetTraffic(request, timeout=self._timeout_s)
        return _task(response.task)

    def server_info(self) -> ServerInfo:
        with self._errors():
            response = self._server.GetServerInfo(server_pb2.GetServerInfoRequest(), timeout=self._timeout_s)
        return ServerInfo(**_to_json(response))

    def wait_until_serving(self, timeout_s: float) -> None:
        """Return when the server's health says SERVING. Raises Unavailable after `timeout_s` seconds."""
        end = time.monotonic() + timeout_s
        while True:
            left_s = end - time.monotonic()
            try:
                with self._errors():
                    answer = self._health.Check(
                        health_pb2.HealthCheckRequest(), timeout=max(left_s, _POLL_S), wait_for_ready=True
                    )
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except AdamixError as error:
                if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                    raise
            if left_s <= 0:
                raise Unavailable(f"{self.address} did not become ready within {timeout_s:g} s")
            time.sleep(_POLL_S)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _predict(
        self, inputs: Iterable[Input], task: str, texts: Iterable[str], truncate: bool, return_logits: bool
    ) -> inference_pb2.PredictResponse:
        asked = [*inputs, *(Input(task, text=text, truncate=truncate) for text in texts)]
        request = inference_pb2.PredictRequest(inputs=[_input(item) for item in asked], return_logits=return_logits)
        with self._errors():
            response: inference_pb2.PredictResponse = self._inference.Predict(request, timeout=self._timeout_s)
        return response

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            found = status.from_rpc_error(error)
            if found.code is Code.UNAVAILABLE and found.reason == Unavailable.default_reason:
                found = Unavailable(f"no server answers at {self.address}: {found.message}")
            raise found from None


def _input(item: Input) -> inference_pb2.PredictInput:
    if sum(part is not None for part in (item.text, item.pair, item.token_ids)) != 1:
        raise InvalidConfig("an input has exactly one of text, pair and token_ids")
    message = inference_pb2.PredictInput(
        task=item.task,
        version=item.version,
        truncation=inference_pb2.TRUNCATION_RIGHT if item.truncate else inference_pb2.TRUNCATION_ERROR,
    )
    try:
        if item.text is not None:
            message.text = item.text
        elif item.pair is not None:
            message.pair.first, message.pair.second = item.pair
        elif item.token_ids is not None:
            message.token_ids.CopyFrom(inference_pb2.TokenIds(ids=item.token_ids))
    except UnicodeEncodeError:
        raise InvalidData("the text is not valid Unicode: it holds half of a surrogate pair") from None
    return message


def _upload(
    header: adapters_pb2.RegisterAdapterHeader, chunks: Iterable[bytes]
) -> Iterator[adapters_pb2.RegisterAdapterRequest]:
    yield adapters_pb2.RegisterAdapterRequest(header=header)
    for chunk in chunks:
        yield adapters_pb2.RegisterAdapterRequest(chunk=chunk)


def _chunks(adapter: Path | str | bytes) -> Iterator[bytes]:
    try:
        source = io.BytesIO(adapter) if isinstance(adapter, bytes) else Path(adapter).open("rb")  # noqa: SIM115
    except OSError as error:
        raise InvalidData(f"{adapter!s}: {error.strerror}") from None

    def read() -> Iterator[bytes]:
        with source:
            yield from iter(lambda: source.read(_CHUNK_BYTES), b"")

    return read()


def _predictions(response: inference_pb2.PredictResponse) -> Predictions:
    return Predictions(
        predictions=tuple(_prediction(message) for message in response.predictions),
        timing=Timing(**_to_json(response.timing)),
    )


def _prediction(message: inference_pb2.Prediction) -> Prediction:
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


def _version(message: adapters_pb2.Version) -> Version:
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
    )


def _task(message: adapters_pb2.Task) -> Task:
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


def _to_json(message: Any) -> dict[str, Any]:
    result: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return result
