"""The way of an input: read (which task, which version, what content), admit, tokenize, infer, write.

Every RPC that predicts goes this way, whatever it looks like on the wire. An input that fails a stage keeps its error
and skips the rest; the others do not notice. Knows no device, no file and no stream.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from adamix.errors import AdamixError, Code, FailedPrecondition, InternalError, InvalidRequest
from adamix_client.status import clip
from adamix_protos.v1 import inference_pb2
from adamix_server.access.principal import Principal
from adamix_server.api import answers, status
from adamix_server.api.resource_names import parse_task, task_name, version_name
from adamix_server.catalog.rows import Name, VersionRow
from adamix_server.channel.engine_frames import Event, GenerateParams, Row
from adamix_server.frontend import convert
from adamix_server.frontend.boundary.call import Call
from adamix_server.frontend.boundary.quota import Quota
from adamix_server.frontend.catalog_view import CatalogView
from adamix_server.frontend.engine_link import EngineLink
from adamix_server.frontend.event_stream import EventStream
from adamix_server.frontend.inference.feeding import Feeding, Place
from adamix_server.frontend.inference.tokenization import Text, Tokenizer, Tokens, check_ids, likely_tokens
from adamix_server.frontend.usage import Meter
from adamix_server.frontend.visibility import NO_TASK, visible
from adamix_server.names import check_digest
from adamix_server.telemetry.metrics import Recorder

log = logging.getLogger(__name__)

# Refusals that protect the server; counted by reason.
_REJECTIONS = frozenset({Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE})


@dataclass(slots=True)
class Item:
    """One input on its way, and how far it came.

    Attributes:
        asked: the task as the caller wrote it, cut where no task's name is as long.
        deadline: in seconds on CLOCK_MONOTONIC.
        resource: the name of what it asks for, as far as it is known.
        name: (tenant, task) of what answers it, once the version is known. The tenant is that of the task, not of the
            caller, if the task is lent.
        text: what to tokenize; None for an input that came as token ids.
        num_tokens: once they are known.
    """

    asked: str
    deadline: float
    resource: str
    name: Name = NO_TASK
    version: VersionRow | None = None
    text: Text | None = None
    tokens: Tokens | None = None
    num_tokens: int = 0
    event: Event | None = None
    error: AdamixError | None = None

    @classmethod
    def of(cls, asked: str, deadline: float) -> "Item":
        """An input for the task that the caller names `asked`, whatever its length."""
        asked = clip(asked, status.MAX_ERROR_BYTES)
        return cls(asked, deadline, resource=asked)


class Stages:
    """The stages and the parts of the front end that own them."""

    def __init__(
        self,
        view: CatalogView,
        tokenizer: Tokenizer,
        link: EngineLink,
        feeding: Feeding,
        quota: Quota,
        recorder: Recorder,
        meter: Meter,
    ) -> None:
        self.view = view
        self._tokenizer = tokenizer
        self._link = link
        self._feeding = feeding
        self._quota = quota
        self._recorder = recorder
        self._meter = meter

    def read(self, message: inference_pb2.PredictInput, field: str, principal: Principal, deadline: float) -> Item:
        """An input with its version and content, or with what is wrong with them.

        Args:
            message: as it came.
            field: where it stood in the request.
            principal: who asks.
            deadline: of this input.
        """
        item = Item.of(message.task, deadline)
        try:
            self.resolve(item, message.version, principal, f"{field}.task", f"{field}.version")
            self._take(item, message, field)
        except AdamixError as error:
            item.error = error
        return item

    def resolve(
        self,
        item: Item,
        digest: str,
        principal: Principal,
        task_field: str,
        version_field: str,
        *,
        generates: bool = False,
    ) -> VersionRow:
        """Find the version that answers `item.asked`: the one with `digest`, or the live one where that is empty.

        Args:
            generates: it is to be answered by a text, not by a prediction.

        Raises:
            InvalidRequest: not a task name, or not a digest; the field is one of those given.
            NotFound: no such task or version, or not the caller's to see.
            FailedPrecondition: nothing answers it on this backbone, or not in this way (`WRONG_HEAD`); or its inputs
                failed again and again (`ADAPTER_QUARANTINED`).
            InvalidAdapter: this server can never load what does (`ADAPTER_TOO_LARGE_FOR_SERVER`).
        """
        name = self._name(item, digest, principal, task_field, version_field)
        version = self.view.resolve(*name, digest)
        _check_head(version, generates=generates)
        self.view.availability.check_quarantine(version, principal.tenant)
        item.name, item.version = name, version
        return version

    def unavailable_reason(
        self, item: Item, digest: str, principal: Principal, task_field: str, version_field: str
    ) -> str:
        """Why what `resolve` would find cannot be predicted; empty if nothing is known against it.

        Raises:
            InvalidRequest, NotFound: as `resolve`.
        """
        name = self._name(item, digest, principal, task_field, version_field)
        if reason := self.view.unavailable_reason(*name, digest, caller=principal.tenant):
            return reason
        row = self.view.snapshot.task(*name)
        version = row.version(digest) if digest else row.heaviest
        return "" if version.head.type in answers.PREDICT_HEADS else "WRONG_HEAD"

    def _name(self, item: Item, digest: str, principal: Principal, task_field: str, version_field: str) -> Name:
        """What the input is for, as it is looked up. Raises InvalidRequest."""
        asked = parse_task(item.asked, principal.tenant, task_field)
        item.resource = task_name(*asked)
        snapshot = self.view.snapshot
        name = visible(asked, principal, snapshot.access.grants)
        if digest:
            check_digest(digest, version_field)
            if name in snapshot.tasks:
                item.resource = version_name(*name, digest)
        return name

    def admit(self, items: Sequence[Item], tenant: str) -> Place:
        """A place in the queue for the inputs of one call, all of one deadline; to be entered as a context.

        Those for which there is none get the error that says why: all of them, before any of them is tokenised.
        """
        lengths = _lengths(items)
        if lengths:
            try:
                return self._feeding.admit(tenant, sum(lengths), len(lengths), items[0].deadline)
            except AdamixError as error:
                for item in items:
                    item.error = item.error or error
        return self._feeding.nowhere(tenant)

    def check(self, items: Iterable[Item], tenant: str) -> None:
        """Give inputs of a stream the errors of those that may not be queued, or would be answered too late."""
        good = [item for item in items if item.error is None]
        if good:
            refusals = self._feeding.refusals(tenant, _lengths(good), [item.deadline for item in good])
            for item, error in zip(good, refusals, strict=True):
                item.error = error

    async def place(self, items: Sequence[Item], tenant: str) -> Place:
        """A place for inputs of a stream, no more than a call may have, as soon as they may wait for room together."""
        lengths = _lengths(items)
        return (
            await self._feeding.place(tenant, sum(lengths), len(lengths)) if lengths else self._feeding.nowhere(tenant)
        )

    async def fed(self, futures: Sequence[asyncio.Future[Event]], tenant: str) -> None:
        """Return when none of these waits for room."""
        await self._feeding.fed(tenant, futures)

    async def tokenize(self, items: Iterable[Item]) -> None:
        """Token ids for every input that has a text."""
        pending = [(item, item.text) for item in items if item.text is not None and item.error is None]
        if not pending:
            return
        results: Sequence[Tokens | AdamixError]
        try:
            results = await self._tokenizer.tokenize([text for _, text in pending])
        except AdamixError as error:
            results = [error] * len(pending)
        for (item, _), result in zip(pending, results, strict=True):
            if isinstance(result, AdamixError):
                item.error = result
            else:
                item.tokens, item.num_tokens = result, len(result)

    async def charge(self, items: Iterable[Item], place: Place) -> None:
        """Charge the tenant the tokens of one call's inputs; all get the error that says why it may not have them."""
        if not self._quota.is_charged(place.tenant):
            return
        charged = [item for item in items if item.tokens is not None and item.error is None]
        try:
            await self._quota.charge(place.tenant, _tokens(charged))
        except AdamixError as error:
            for item in charged:
                item.error = error

    async def charge_each(self, items: Iterable[Item], place: Place) -> None:
        """As `charge`, for inputs of a stream, each of which is admitted alone."""
        if self._quota.is_charged(place.tenant):
            for item in items:
                await self.charge((item,), place)

    def generate(self, item: Item, params: GenerateParams, place: Place) -> EventStream:
        """Send an input that has tokens and a version to the engine, or let it wait for room: what it is answered.

        Cancelling that ends its wait, here or in the engine.

        Raises:
            AdamixError: it cannot be sent, or there is no room for it; what it was charged is given back.
        """
        if item.tokens is None or item.version is None:
            raise RuntimeError("an input without tokens or without a version")
        stream = EventStream(self._link.next_id())
        row = Row(
            id=stream.row_id,
            tenant=place.tenant,
            digest=item.version.digest,
            token_ids=item.tokens.ids,
            deadline=item.deadline,
            generate=params,
        )
        try:
            self._feeding.submit(place, [row], [stream])
            if stream.done():
                # There was no room.
                stream.result()
        except AdamixError:
            self._quota.refund(place.tenant, len(item.tokens))
            raise
        return stream

    def stop(self, stream: EventStream) -> None:
        """What an input would still be answered is not needed; its final event comes soon."""
        self._link.stop(stream.row_id)

    def submit(self, items: Iterable[Item], place: Place) -> list[tuple[Item, asyncio.Future[Event]]]:
        """Send every input that has tokens to the engine, or let it wait for room; what each of them waits for.

        Cancelling one ends its wait, here or in the engine. What those were charged that there is no room for is given
        back.
        """
        ready: list[Item] = []
        rows: list[Row] = []
        for item in items:
            if item.tokens is not None and item.version is not None and item.error is None:
                ready.append(item)
                rows.append(
                    Row(
                        id=self._link.next_id(),
                        tenant=place.tenant,
                        digest=item.version.digest,
                        token_ids=item.tokens.ids,
                        type_ids=item.tokens.type_ids,
                        deadline=item.deadline,
                    )
                )
        if not ready:
            return []
        try:
            waiting = list(zip(ready, self._feeding.submit(place, rows), strict=True))
        except AdamixError as error:
            self._quota.refund(place.tenant, _tokens(ready))
            for item in ready:
                item.error = error
            return []
        self._quota.refund(place.tenant, _tokens(item for item, future in waiting if future.done()))
        return waiting

    async def infer(self, items: Iterable[Item], place: Place) -> None:
        """Submit, and wait for the engine's event on every input."""
        waiting = self.submit(items, place)
        try:
            # One after the other, since most of a call is answered by one step of the engine: the first await then
            # pays for all. `asyncio.gather` would run a callback for each.
            for item, future in waiting:
                try:
                    settle(item, await future)
                except AdamixError as error:
                    item.error = error
        except BaseException:
            # The call was cancelled: the engine learns of it by the inputs that still wait.
            abandon(future for _, future in waiting)
            raise

    def write(self, item: Item, prediction: inference_pb2.Prediction, call: Call, *, return_logits: bool) -> None:
        """Fill an empty message with the answer, or with the error in its place."""
        if item.event is not None and item.version is not None and item.error is None:
            try:
                payload = item.event.payload
                convert.fill_result(prediction, answers.read(item.version.head, payload))
                if return_logits:
                    prediction.logits.extend(answers.unpack(payload))
            except AdamixError as error:
                item.error = error
        elif item.error is None:
            item.error = InternalError("an input was neither answered nor refused")
        if item.error is not None:
            prediction.error.CopyFrom(status.to_status(concealed(item.error, call), item.resource))
        prediction.task = item.asked
        if item.version is not None:
            prediction.version = item.version.digest

    def record(self, items: Iterable[Item], tenant: str, seconds: float, *, num_generated: int = 0) -> None:
        """Count inputs that came to their end after `seconds`, by task and by the reason they were refused for.

        What they say of the versions that they are for is remembered.

        Args:
            tenant: that asked; the tasks may be another's.
            num_generated: tokens that they were answered with.
        """
        answered: Counter[Name] = Counter()
        refused: Counter[str] = Counter()
        num_tokens = 0
        tasks, availability = self.view.snapshot.tasks, self.view.availability
        for item in items:
            if item.version is not None:
                if item.error is not None:
                    availability.failed(item.version.digest, item.error)
                elif item.event is not None and not availability.is_clean:
                    availability.loaded(item.version.digest)
            if item.error is not None and _is_refusal(item.error):
                refused[item.error.reason] += 1
            if item.event is not None:
                num_tokens += item.num_tokens
            # A task that was deleted meanwhile must not get its series back.
            if item.version is not None and item.name in tasks:
                answered[item.name] += 1
        if num_tokens:
            self._meter.computed(tenant, num_tokens, num_generated)
            self._recorder.inc("adamix_tenant_tokens_total", tenant, "input", by=num_tokens)
        if num_generated:
            self._recorder.inc("adamix_tenant_tokens_total", tenant, "generated", by=num_generated)
        for reason, count in refused.items():
            self._recorder.inc("adamix_rejected_total", reason, by=count)
            self._recorder.inc("adamix_tenant_rejected_total", tenant, reason, by=count)
            self._meter.rejected(tenant, reason, count)
        for name, count in answered.items():
            self._recorder.inc("adamix_task_requests_total", *name, by=count)
            self._recorder.observe("adamix_task_seconds", *name, value=seconds)

    def _take(self, item: Item, message: inference_pb2.PredictInput, field: str) -> None:
        """The content of an input: a text to tokenize, or token ids, which are taken as they are."""
        max_tokens = 0 if item.version is None else item.version.max_length
        truncate = message.truncation == inference_pb2.TRUNCATION_RIGHT
        match message.WhichOneof("content"):
            case "text":
                item.text = Text(message.text, None, max_tokens, truncate, f"{field}.text")
            case "pair":
                item.text = Text(message.pair.first, message.pair.second, max_tokens, truncate, f"{field}.pair")
            case "token_ids":
                vocab_size = self.view.spec.vocab_size
                item.tokens = check_ids(message.token_ids.ids, vocab_size, max_tokens, f"{field}.token_ids")
                item.num_tokens = len(item.tokens)
            case _:
                raise InvalidRequest(f"{field} has no text, pair or token_ids", reason="TEXT_EMPTY", field=field)


def _lengths(items: Iterable[Item]) -> list[int]:
    """Of inputs without an error, in tokens; of a text what is likely, since only tokenising it would tell."""
    return [
        likely_tokens(item.text) if item.text is not None else 0 if item.tokens is None else len(item.tokens)
        for item in items
        if item.error is None
    ]


def _check_head(version: VersionRow, *, generates: bool) -> None:
    """Raises FailedPrecondition (`WRONG_HEAD`) unless a version answers in this way."""
    kind = version.head.type
    if kind == "cloze":
        raise FailedPrecondition(
            "this task is answered by a word in a template, which this server does not do", reason="WRONG_HEAD"
        )
    if generates and kind != "causal_lm":
        raise FailedPrecondition("this task does not generate text; call Predict", reason="WRONG_HEAD")
    if not generates and kind not in answers.PREDICT_HEADS:
        raise FailedPrecondition("this task generates text; call Generate", reason="WRONG_HEAD")


def _is_refusal(error: AdamixError) -> bool:
    return error.code in _REJECTIONS or error.reason == "DEADLINE_UNREACHABLE"


def _tokens(items: Iterable[Item]) -> int:
    """Of all of them together, as far as they are tokenised."""
    return sum(len(item.tokens) for item in items if item.tokens is not None)


def settle(item: Item, event: Event) -> None:
    """Give an input the engine's last word on it."""
    if event.error is not None:
        item.error = event.error.to_error()
    else:
        item.event = event


def abandon(futures: Iterable[asyncio.Future[Any]]) -> None:
    """Stop waiting. The engine is told; errors that nobody will read are looked at, or asyncio reports them."""
    for future in futures:
        if not future.cancel() and not future.cancelled():
            future.exception()


def concealed(error: AdamixError, call: Call) -> AdamixError:
    """`error` as the caller may see it: a bug shows nothing but the id under which it is logged here."""
    if error.code is not Code.INTERNAL:
        return error
    log.error("an input failed: %s", error.message, extra={"request_id": call.request_id, "reason": error.reason})
    return status.internal(call.request_id, error)
