"""`InferenceService`: answers for task ids.

A call is a list of inputs that go through four stages: resolve, tokenize, infer, convert. An input that fails a stage
keeps its error and skips the rest; the others do not notice. Knows no device and no file.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from adamix.errors import AdamixError, Code, FailedPrecondition, InternalError, InvalidRequest
from adamix_protos.v1 import inference_pb2, inference_pb2_grpc
from adamix_server.catalog.names import check_digest
from adamix_server.catalog.rows import VersionRow
from adamix_server.config import MAX_INPUTS_PER_CALL
from adamix_server.frames import Event, Row
from adamix_server.frontend import call as calls
from adamix_server.frontend import convert, status
from adamix_server.frontend.call import Call
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.engine_link import EngineLink
from adamix_server.frontend.names import parse_task, task_name, version_name
from adamix_server.frontend.tokenization import Text, Tokenizer, Tokens, check_ids
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

# Refusals that protect the server; counted by reason.
_REJECTIONS = frozenset({Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE})


@dataclass
class _Input:
    """One input of a call on its way, and how far it came."""

    message: inference_pb2.PredictInput
    field: str
    resource: str
    task: str = ""
    version: VersionRow | None = None
    tokens: Tokens | None = None
    event: Event | None = None
    error: AdamixError | None = None


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Thin: every decision is made by the part that owns it."""

    def __init__(self, view: CatalogView, tokenizer: Tokenizer, link: EngineLink, recorder: Recorder) -> None:
        self._view = view
        self._tokenizer = tokenizer
        self._link = link
        self._recorder = recorder

    async def Predict(self, request: inference_pb2.PredictRequest, _context: Any) -> inference_pb2.PredictResponse:
        call, start = calls.current(), time.monotonic()
        if not 1 <= len(request.inputs) <= MAX_INPUTS_PER_CALL:
            raise InvalidRequest(
                f"a call has 1 to {MAX_INPUTS_PER_CALL} inputs, not {len(request.inputs)}",
                reason="INPUT_COUNT",
                field="inputs",
            )
        inputs = [
            _Input(message, f"inputs[{index}]", resource=message.task) for index, message in enumerate(request.inputs)
        ]
        self._resolve(inputs, call)
        with self._view.hold(item.version.digest for item in inputs if item.version is not None):
            before_tokenize = time.monotonic()
            await self._tokenize(inputs)
            tokenize_s = time.monotonic() - before_tokenize
            await self._infer(inputs, call)
        predictions = [self._to_prediction(item, call, request.return_logits) for item in inputs]
        self._record(inputs, call, time.monotonic() - start)
        _fail_if_all_failed_alike(inputs, call)
        timings = [item.event.timing for item in inputs if item.event is not None]
        return inference_pb2.PredictResponse(
            predictions=predictions, timing=convert.to_timing(timings, tokenize_s, timings[-1] if timings else None)
        )

    async def Generate(self, _request: inference_pb2.GenerateRequest, _context: Any) -> None:
        raise FailedPrecondition(
            "this server's backbone is an encoder, which generates no text; call Predict", reason="NOT_GENERATIVE"
        )

    def _resolve(self, inputs: Iterable[_Input], call: Call) -> None:
        for item in inputs:
            try:
                self._resolve_one(item, call)
            except AdamixError as error:
                item.error = error

    def _resolve_one(self, item: _Input, call: Call) -> None:
        task = parse_task(item.message.task, call.tenant, f"{item.field}.task")
        item.resource = task_name(call.tenant, task)
        digest = item.message.version
        if digest:
            check_digest(digest, f"{item.field}.version")
            if (call.tenant, task) in self._view.snapshot.tasks:
                item.resource = version_name(call.tenant, task, digest)
        version = self._view.resolve(call.tenant, task, digest)
        if version.manifest.head.type not in convert.PREDICT_HEADS:
            raise FailedPrecondition("this task generates text; call Generate", reason="WRONG_HEAD")
        item.task, item.version = task, version

    async def _tokenize(self, inputs: Iterable[_Input]) -> None:
        """Token ids for every input that has a version."""
        pending: list[tuple[_Input, Text]] = []
        for item in inputs:
            if item.version is None:
                continue
            try:
                text = self._to_text(item, item.version.manifest.max_length)
            except AdamixError as error:
                item.error = error
                continue
            if text is not None:
                pending.append((item, text))
        if not pending:
            return
        results: list[Tokens | AdamixError]
        try:
            results = await self._tokenizer.tokenize([text for _, text in pending])
        except AdamixError as error:
            results = [error] * len(pending)
        for (item, _), result in zip(pending, results, strict=True):
            if isinstance(result, AdamixError):
                item.error = result
            else:
                item.tokens = result

    def _to_text(self, item: _Input, max_tokens: int) -> Text | None:
        """The text of an input; None for one that came as token ids, which are taken as they are."""
        message, field = item.message, item.field
        truncate = message.truncation == inference_pb2.TRUNCATION_RIGHT
        match message.WhichOneof("content"):
            case "text":
                return Text(message.text, None, max_tokens, truncate, f"{field}.text")
            case "pair":
                return Text(message.pair.first, message.pair.second, max_tokens, truncate, f"{field}.pair")
            case "token_ids":
                vocab_size = self._view.spec.vocab_size
                item.tokens = check_ids(message.token_ids.ids, vocab_size, max_tokens, f"{field}.token_ids")
                return None
            case _:
                raise InvalidRequest(f"{field} has no text, pair or token_ids", reason="TEXT_EMPTY", field=field)

    async def _infer(self, inputs: Iterable[_Input], call: Call) -> None:
        """The engine's event for every input that has tokens."""
        ready: list[_Input] = []
        rows: list[Row] = []
        for item in inputs:
            if item.tokens is not None and item.version is not None:
                ready.append(item)
                rows.append(
                    Row(
                        id=self._link.next_id(),
                        tenant=call.tenant,
                        digest=item.version.digest,
                        token_ids=item.tokens.ids,
                        type_ids=item.tokens.type_ids,
                        deadline=call.deadline,
                    )
                )
        if not ready:
            return
        try:
            events = self._link.submit(rows)
        except AdamixError as error:
            for item in ready:
                item.error = error
            return
        try:
            # One after the other, since most of a call is answered by one step of the engine: the first await then
            # pays for all. `asyncio.gather` would run a callback for each.
            for item, waiting in zip(ready, events, strict=True):
                try:
                    event = await waiting
                except AdamixError as error:
                    item.error = error
                    continue
                if event.error is not None:
                    item.error = event.error.to_error()
                else:
                    item.event = event
        finally:
            # Where the call was cancelled, the engine learns of it by those that still wait; of the others the errors
            # have to be looked at, or asyncio reports them.
            for waiting in events:
                if not waiting.cancel() and not waiting.cancelled():
                    waiting.exception()

    def _to_prediction(self, item: _Input, call: Call, return_logits: bool) -> inference_pb2.Prediction:
        prediction = inference_pb2.Prediction()
        if item.event is not None and item.version is not None:
            head = item.version.manifest.head
            try:
                prediction = convert.to_prediction(head, item.event.payload, return_logits=return_logits)
            except AdamixError as error:
                item.error = error
        elif item.error is None:
            item.error = InternalError("an input was neither answered nor refused")
        if item.error is not None:
            prediction.error.CopyFrom(status.to_status(self._concealed(item.error, call), item.resource))
        prediction.task = status.clip(item.message.task, status.MAX_ERROR_BYTES)
        prediction.version = "" if item.version is None else item.version.digest
        return prediction

    def _concealed(self, error: AdamixError, call: Call) -> AdamixError:
        if error.code is not Code.INTERNAL:
            return error
        log.error("an input failed: %s", error.message, extra={"request_id": call.request_id, "reason": error.reason})
        return status.internal(call.request_id, error)

    def _record(self, inputs: Iterable[_Input], call: Call, seconds: float) -> None:
        answered: Counter[str] = Counter()
        for item in inputs:
            if item.error is not None and item.error.code in _REJECTIONS:
                self._recorder.inc("adamix_rejected_total", item.error.reason)
            # A task that was deleted meanwhile must not get its series back.
            if item.version is not None and (call.tenant, item.task) in self._view.snapshot.tasks:
                answered[item.task] += 1
        for task, count in answered.items():
            self._recorder.inc("adamix_task_requests_total", call.tenant, task, by=count)
            self._recorder.observe("adamix_task_seconds", call.tenant, task, value=seconds)


def _fail_if_all_failed_alike(inputs: list[_Input], call: Call) -> None:
    """Raise the first input's error if every input failed with its code and reason."""
    first = inputs[0].error
    if first is not None and all(
        item.error is not None and (item.error.code, item.error.reason) == (first.code, first.reason) for item in inputs
    ):
        call.resource = inputs[0].resource
        raise first
