"""`POST /v1/embeddings` and vLLM's `POST /classify`: a `Predict` for each 64 texts, one after the other.

All or nothing, as both are: the first text that fails fails the request, and the calls after its own are not made.
Knows calls and requests; what is asked is `asking.py`.
"""

import base64
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np

from adamix.errors import AdamixError, InvalidRequest
from adamix_client.status import from_status
from adamix_protos.v1 import inference_pb2
from adamix_server.frontend.boundary import call as boundary
from adamix_server.frontend.boundary.call import Call
from adamix_server.frontend.http.bodies import check_json
from adamix_server.frontend.http.calls import Calls
from adamix_server.frontend.http.open_ai import asking, bodies, errors
from adamix_server.frontend.http.open_ai.answer_room import VALUE_BYTES, AnswerRoom, no_room
from adamix_server.frontend.http.open_ai.bodies import EmbeddingBody, InputBody, unsupported
from adamix_server.frontend.http.open_ai.models import Model, Models
from adamix_server.frontend.http.predict import numbers
from adamix_server.frontend.http.reply import Reply
from adamix_server.frontend.http.request import Request

_PREDICT = "/adamix.v1.InferenceService/Predict"
# What a text is called in a message of ours; its callers know it as `input[3]`, or `input` if it is the only one.
_WIRE_NAME = re.compile(r"inputs\[(?P<index>\d+)\](?:\.(?:text|token_ids))?")
B = TypeVar("B", bound=InputBody)


@dataclass(frozen=True)
class Route(Generic[B]):
    """What is peculiar to one of the two routes.

    Attributes:
        kind: of its body.
        heads: that it is for.
        instead: what is said of other ones.
        width: how many values an answer has. Raises InvalidRequest for what the body cannot have.
        item: the answer to one text.
        whole: the answer to all of them: of a model, a request's id, its texts, and the usage.
    """

    kind: type[B]
    heads: tuple[str, ...]
    instead: str
    width: Callable[[B, Model], int]
    item: Callable[[B, Model, inference_pb2.Prediction], dict[str, Any]]
    whole: Callable[[Model, str, Sequence[dict[str, Any]], dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Predicting(Generic[B]):
    """Answers one of the two routes."""

    calls: Calls
    models: Models
    room: AnswerRoom
    route: Route[B]

    async def __call__(self, request: Request) -> Reply:
        asked, data = _Asked(self.models, self.room, self.route), list[dict[str, Any]]()
        try:
            while not data or asked.requests:
                answer = await self.calls.one(request, _PREDICT, asked.read, inference_pb2.PredictResponse)
                for prediction in answer.predictions:
                    data.append({"index": len(data), **asked.item(prediction)})
                asked.ended()
            reply = Reply(msgspec.json.encode(asked.whole(request.id, data)))
            request.ends.append(asked.give)
        except AdamixError as error:
            asked.give()
            return errors.to_reply(asked.in_words(error))
        except BaseException:
            asked.give()
            raise
        return reply


@dataclass
class _Asked(Generic[B]):
    """One request, known as far as its body has been read.

    Attributes:
        requests: of the calls that are still to be made.
        give: gives back the room of the answer.
    """

    models: Models
    room: AnswerRoom
    route: Route[B]
    give: Callable[[], None] = no_room
    requests: list[inference_pb2.PredictRequest] = field(default_factory=list)
    _known: tuple[B, Model] | None = None
    _call: Call | None = None
    # Texts of the calls before this one, and of this one; tokens of all that were answered.
    _before: int = 0
    _now: int = 0
    _num_tokens: int = 0
    _is_list: bool = False

    @property
    def known(self) -> tuple[B, Model]:
        if self._known is None:
            raise RuntimeError("an answer to a body that was not read")
        return self._known

    async def read(self, request: Request) -> inference_pb2.PredictRequest:
        """The request of the next call."""
        self._call = boundary.current()
        if self._known is None:
            check_json(request)
            self._learn(await request.body(), self._call)
        message = self.requests.pop(0)
        self._now = len(message.inputs)
        return message

    def item(self, prediction: inference_pb2.Prediction) -> dict[str, Any]:
        """The answer to one text. Raises AdamixError: what it failed with."""
        if prediction.HasField("error"):
            raise from_status(prediction.error)
        return self.route.item(*self.known, prediction)

    def ended(self) -> None:
        """The call has been answered."""
        self._before += self._now
        if self._call is not None:
            self._num_tokens += self._call.input_tokens

    def whole(self, request_id: str, data: Sequence[dict[str, Any]]) -> dict[str, Any]:
        usage = {"prompt_tokens": self._num_tokens, "total_tokens": self._num_tokens}
        return self.route.whole(self.known[1], request_id, data, usage)

    def in_words(self, error: AdamixError) -> AdamixError:
        """The same error, with texts called as the caller knows them."""

        def own(found: "re.Match[str]") -> str:
            return f"input[{self._before + int(found['index'])}]" if self._is_list else "input"

        said = type(error).__new__(type(error))
        said.__dict__.update(error.__dict__)
        said.message = _WIRE_NAME.sub(own, error.message)
        said.field = None if error.field is None else _WIRE_NAME.sub(own, error.field)
        return said

    def _learn(self, raw: bytes, call: Call) -> None:
        route = self.route
        model = self.models.find(bodies.read_model(raw), call)
        model.check_head(*route.heads, instead=route.instead)
        body = bodies.read_body(raw, route.kind)
        width = route.width(body, model)
        self.requests = asking.inputs(body, model)
        count = sum(len(request.inputs) for request in self.requests)
        # The first call's own the boundary has counted.
        waiting = sum(request.ByteSize() for request in self.requests[1:])
        size = count * width * VALUE_BYTES
        self.give = self.room.take(call.tenant, size, "send fewer texts", "input", waiting)
        self._is_list = count > 1
        self._known = body, model


def embeddings(models: Models) -> Route[EmbeddingBody]:
    def width(body: EmbeddingBody, model: Model) -> int:
        if body.encoding_format not in (None, "float", "base64"):
            raise InvalidRequest("encoding_format is float or base64", reason="OUT_OF_RANGE", field="encoding_format")
        head = model.head
        size = models.view.spec.hidden_size if head is None or head.dim is None else head.dim
        if body.dimensions not in (None, size):
            raise unsupported("dimensions", f"the embeddings of this model have {size}; leave it out")
        return size

    def item(body: EmbeddingBody, _: Model, prediction: inference_pb2.Prediction) -> dict[str, Any]:
        values = prediction.embedding.values
        if body.encoding_format != "base64":
            return {"object": "embedding", "embedding": numbers(values)}
        raw = np.asarray(values, dtype="<f4").tobytes()
        return {"object": "embedding", "embedding": base64.b64encode(raw).decode("ascii")}

    def whole(model: Model, _: str, data: Sequence[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {"object": "list", "data": data, "model": model.name, "usage": usage}

    instead = "which gives no embeddings; ask /classify, /v1/completions or /v1/predict"
    return Route(EmbeddingBody, ("embedding",), instead, width, item, whole)


def classes(models: Models) -> Route[InputBody]:
    def width(_: InputBody, model: Model) -> int:
        return 1 if model.head is None else model.head.num_labels

    def item(_: InputBody, model: Model, prediction: inference_pb2.Prediction) -> dict[str, Any]:
        if prediction.HasField("multi_label"):
            # As vLLM has it: of several labels that may hold together, the likeliest.
            probs = list(prediction.multi_label.scores)
            label = models.head(model, prediction.version).label(max(range(len(probs)), key=probs.__getitem__))
        else:
            probs, label = list(prediction.classification.scores), prediction.classification.label
        return {"label": label, "probs": numbers(probs), "num_classes": len(probs)}

    def whole(model: Model, request_id: str, data: Sequence[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": f"classify-{request_id}",
            "object": "list",
            "created": int(time.time()),
            "model": model.name,
            "data": data,
            "usage": {**usage, "completion_tokens": 0, "prompt_tokens_details": None},
        }

    instead = "which knows no classes; ask /v1/embeddings, /v1/completions or /v1/predict"
    return Route(InputBody, ("classification", "multilabel"), instead, width, item, whole)
