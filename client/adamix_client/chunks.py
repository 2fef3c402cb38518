"""Any number of inputs as calls that a server takes: up to 64 inputs and a message's bytes each, in order. Pure."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from adamix_client import status
from adamix_client.bounds import MAX_INPUTS_PER_CALL, MAX_MESSAGE_BYTES
from adamix_client.errors import AdamixError, InvalidConfig, InvalidData
from adamix_client.retries import may_pass
from adamix_client.values import Input, Prediction, to_input, to_prediction
from adamix_client.wording import place_of, reword
from adamix_protos.v1 import inference_pb2

# One text, or a pair of texts that are read together.
Text = str | tuple[str, str]
OnError = Literal["raise", "return"]
# Of a message beside its inputs, and of each input beside its bytes.
_ROOM_BYTES = 64
_FRAME_BYTES = 8


@dataclass
class Chunk:
    """What one call asks: `request`, whose inputs are those at `places`, of all; and what is not asked, by its place.

    `tasks` are those of its inputs.
    """

    request: inference_pb2.PredictRequest
    places: list[int] = field(default_factory=list)
    refused: dict[int, Prediction] = field(default_factory=dict)
    tasks: set[str] = field(default_factory=set)
    num_bytes: int = _ROOM_BYTES

    @property
    def task(self) -> str:
        """The one that all are for; empty if there are several."""
        return next(iter(self.tasks)) if len(self.tasks) == 1 else ""


class Answer:
    """What a chunk is answered, by as many calls as it takes: inputs whose refusal may pass are asked again.

    Attributes:
        request: the call that is to be made.
        response: to all inputs; None before the first.
    """

    def __init__(self, chunk: Chunk) -> None:
        self.request = chunk.request
        self.response: inference_pb2.PredictResponse | None = None
        self._all = chunk.request
        self._numbers = list(range(len(chunk.places)))

    def add(self, response: inference_pb2.PredictResponse) -> AdamixError | None:
        """Take the response to `request`. Gives why it is to be made, with what it holds then; None if it is not."""
        if self.response is None:
            self.response = response
        if len(response.predictions) != len(self._numbers):
            return None
        if self.response is not response:
            for number, prediction in zip(self._numbers, response.predictions, strict=True):
                self.response.predictions[number].CopyFrom(prediction)
            self.response.timing.CopyFrom(response.timing)
        refused = {
            number: status.from_status(self.response.predictions[number].error)
            for number in self._numbers
            if self.response.predictions[number].WhichOneof("result") == "error"
        }
        self._numbers = [number for number, error in refused.items() if may_pass(error)]
        self.request = inference_pb2.PredictRequest(
            inputs=[self._all.inputs[number] for number in self._numbers], return_logits=self._all.return_logits
        )
        return max((refused[number] for number in self._numbers), key=lambda one: one.retry_after_s or 0, default=None)

    def or_failure(self, failure: AdamixError) -> inference_pb2.PredictResponse | AdamixError:
        """What there is once nothing is asked any more."""
        return failure if self.response is None else self.response


@dataclass(frozen=True, kw_only=True)
class Asked:
    """How inputs are asked.

    Attributes:
        task, version, truncate: of texts; an Input has its own.
        on_error: `return` leaves what failed in its place; with `raise` the first failure is raised.
        noun: what their caller calls one of them.
        is_single: there is only one, and nobody counts.
    """

    task: str = ""
    version: str = ""
    truncate: bool = False
    return_logits: bool = False
    on_error: OnError = "raise"
    noun: str = "text"
    is_single: bool = False

    def __post_init__(self) -> None:
        if self.on_error not in ("raise", "return"):
            raise InvalidConfig(f"on_error must be raise or return, not {self.on_error}", field="on_error")

    def task_of(self, item: Text | Input) -> str:
        return item.task if isinstance(item, Input) else self.task

    def input_of(self, item: object) -> Input:
        """Raises InvalidData for what is neither a text, nor two, nor an Input."""
        if isinstance(item, Input):
            return item
        if isinstance(item, str):
            return Input(self.task, text=item, version=self.version, truncate=self.truncate)
        if isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item):
            return Input(self.task, pair=(item[0], item[1]), version=self.version, truncate=self.truncate)
        raise InvalidData(f"not a text, nor a pair of texts, but a {type(item).__name__}")

    def request(self, items: Iterable[Text | Input]) -> inference_pb2.PredictRequest:
        """One call with all of them, however many a server takes."""
        messages = [to_input(self.input_of(item)) for item in items]
        return inference_pb2.PredictRequest(inputs=messages, return_logits=self.return_logits)

    def answers(self, chunk: Chunk, response: Any | AdamixError) -> list[Prediction]:
        """One prediction for each input of a chunk, in order.

        Args:
            response: to its call, or why there is none. If there was nothing to ask, it is not looked at.

        Raises:
            AdamixError: with `on_error="raise"`, that of the first input that failed.
        """
        found = dict(chunk.refused)
        if isinstance(response, inference_pb2.PredictResponse) and len(response.predictions) != len(chunk.places):
            response = AdamixError("the server's answer has not one prediction for each input")
        for number, place in enumerate(chunk.places):
            task = chunk.request.inputs[number].task
            if isinstance(response, AdamixError):
                found[place] = Prediction(task, "", None, self._of_all(response, chunk.places[0], place))
            else:
                prediction = found[place] = to_prediction(response.predictions[number])
                if prediction.error is not None:
                    self.say_which(prediction.error, place)
        in_order = [found[place] for place in sorted(found)]
        if self.on_error == "raise":
            for prediction in in_order:
                if prediction.error is not None:
                    raise prediction.error
        return in_order

    def say_which(self, error: AdamixError, place: int) -> None:
        """In the words of whoever gave the inputs."""
        reword(error, None if self.is_single else place, self.noun)

    def _of_all(self, failure: AdamixError, first: int, place: int) -> AdamixError:
        """Why the input at `place` was not answered: its call failed, and the server says how its first one did."""
        error = copy.copy(failure)
        if place_of(failure) is None:
            return error
        self.say_which(error, first)
        if place != first:
            error.message = f"{self.noun} {place + 1} failed as {self.noun} {first + 1} did: {error.message}"
            error.args = (error.message,)
            error.field = (error.field or "").replace(f"inputs[{first}]", f"inputs[{place}]", 1)
        return error


class Chunker:
    """Takes inputs one by one, and gives a chunk whenever one is full."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._chunk = self._new()
        self._next = 0

    def add(self, item: Text | Input) -> Chunk | None:
        """The chunk that was full before this input, if it was."""
        place, self._next = self._next, self._next + 1
        try:
            message = _message(self._asked.input_of(item))
        except AdamixError as error:
            error.field = f"inputs[{place}]"
            self._asked.say_which(error, place)
            if self._asked.on_error == "raise":
                raise
            full = self._make_room(0)
            self._chunk.refused[place] = Prediction(self._asked.task_of(item), "", None, error)
            return full
        num_bytes = message.ByteSize() + _FRAME_BYTES
        full = self._make_room(num_bytes)
        self._chunk.places.append(place)
        self._chunk.request.inputs.append(message)
        self._chunk.tasks.add(message.task)
        self._chunk.num_bytes += num_bytes
        return full

    def rest(self) -> Chunk | None:
        """What is left."""
        rest, self._chunk = self._chunk, self._new()
        return rest if rest.places or rest.refused else None

    def _make_room(self, num_bytes: int) -> Chunk | None:
        """The chunk in hand, if it cannot hold so much more, and a new one in its place."""
        inputs = len(self._chunk.places) + len(self._chunk.refused)
        if inputs < MAX_INPUTS_PER_CALL and self._chunk.num_bytes + num_bytes <= MAX_MESSAGE_BYTES:
            return None
        full, self._chunk = self._chunk, self._new()
        return full

    def _new(self) -> Chunk:
        return Chunk(inference_pb2.PredictRequest(return_logits=self._asked.return_logits))


def _message(item: Input) -> inference_pb2.PredictInput:
    message = to_input(item)
    if message.ByteSize() + _FRAME_BYTES + _ROOM_BYTES > MAX_MESSAGE_BYTES:
        raise InvalidData(
            f"text is larger than a message can be, {MAX_MESSAGE_BYTES >> 20} MiB", reason="TEXT_TOO_LARGE"
        )
    return message


def chunked(items: Iterable[Text | Input], asked: Asked) -> Iterator[Chunk]:
    """All of them. Reads no further than one chunk."""
    chunker = Chunker(asked)
    for item in items:
        if (full := chunker.add(item)) is not None:
            yield full
    if (rest := chunker.rest()) is not None:
        yield rest


def one_call(
    task: Any,
    texts: Any,
    version: str,
    truncate: bool,
    return_logits: bool,
    on_error: OnError,
) -> tuple[Asked, Any]:
    """(how, what) of a `predict`. Raises InvalidConfig if its arguments do not go together."""
    if not isinstance(task, str):
        if texts is not None or version or truncate:
            raise InvalidConfig("each input has its own text, version and truncate: give them there")
        return Asked(return_logits=return_logits, on_error=on_error, noun="input"), task
    if texts is None or isinstance(texts, bytes):
        raise InvalidConfig(f"{task} is asked about a text, or about several", field="texts")
    asked = Asked(
        task=task,
        version=version,
        truncate=truncate,
        return_logits=return_logits,
        on_error=on_error,
        is_single=isinstance(texts, str),
    )
    return asked, [texts] if isinstance(texts, str) else texts
