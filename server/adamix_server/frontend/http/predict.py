"""`POST /v1/predict`: the JSON of `PredictRequest`, answered with the JSON of `PredictResponse`.

Names are those of the protos, numbers are what `adamix predict --json` prints, and no field is left out. Coded by hand
where `json_format` takes milliseconds. Knows the data plane's messages; the call is `calls.py`'s.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from google.protobuf import json_format
from msgspec import UNSET, UnsetType

from adamix.errors import InvalidRequest
from adamix_protos.v1 import inference_pb2
from adamix_server.frontend.http.bodies import read_json
from adamix_server.frontend.http.calls import Calls
from adamix_server.frontend.http.reply import Reply
from adamix_server.frontend.http.request import Request
from adamix_server.frontend.http.route import Route

METHOD = "/adamix.v1.InferenceService/Predict"


class TextPair(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """As of the proto."""

    first: str | UnsetType | None = UNSET
    second: str | UnsetType | None = UNSET


class TokenIds(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """As of the proto."""

    ids: list[int] | UnsetType | None = UNSET


class PredictInput(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """As of the proto: of `text`, `pair` and `token_ids` one."""

    task: str | UnsetType | None = UNSET
    version: str | UnsetType | None = UNSET
    text: str | UnsetType | None = UNSET
    pair: TextPair | UnsetType | None = UNSET
    token_ids: TokenIds | UnsetType | None = UNSET
    truncation: str | int | UnsetType | None = UNSET


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """As of the proto."""

    inputs: list[PredictInput] | UnsetType | None = UNSET
    return_logits: bool | UnsetType | None = UNSET


_DECODER = msgspec.json.Decoder(PredictRequest)
_ENCODER = msgspec.json.Encoder()
_TRUNCATION = inference_pb2.Truncation.DESCRIPTOR


def routes(calls: Calls) -> list[Route]:
    """The route of predictions."""

    async def predict(request: Request) -> Reply:
        answer = await calls.one(request, METHOD, _read, inference_pb2.PredictResponse)
        return Reply(_ENCODER.encode(to_document(answer)))

    return [
        Route(
            "POST",
            "/v1/predict",
            predict,
            summary="Answer up to 64 inputs, each for a task of its own.",
            tag="predictions",
            takes=PredictRequest,
        )
    ]


async def _read(request: Request) -> inference_pb2.PredictRequest:
    return to_message(await read_json(request, _DECODER, num_names=num_names))


def to_message(body: PredictRequest) -> inference_pb2.PredictRequest:
    """The message of a body. Raises InvalidRequest with the field."""
    message = inference_pb2.PredictRequest(return_logits=bool(body.return_logits))
    add = message.inputs.add
    for index, item in enumerate(body.inputs or ()):
        part = add()
        try:
            if item.task:
                part.task = item.task
            if item.version:
                part.version = item.version
            _put_content(part, item, index)
            if item.truncation:
                part.truncation = _truncation(item.truncation)
        except ValueError as error:
            # A number that does not fit its field, or half of a surrogate pair.
            raise _wrong(index, "holds a value that its type does not have") from error
    return message


def to_document(answer: inference_pb2.PredictResponse) -> dict[str, Any]:
    """What `json_format.MessageToDict` makes of it, with proto field names and fields of default value."""
    timing = answer.timing
    document: dict[str, Any] = {"predictions": [_prediction(prediction) for prediction in answer.predictions]}
    if answer.HasField("timing"):
        document["timing"] = {
            "queue_s": timing.queue_s,
            "load_s": timing.load_s,
            "tokenize_s": timing.tokenize_s,
            "compute_s": timing.compute_s,
            "batch_requests": timing.batch_requests,
            "batch_tokens": timing.batch_tokens,
            "batch_tasks": timing.batch_tasks,
        }
    return document


def _put_content(part: inference_pb2.PredictInput, item: PredictInput, index: int) -> None:
    num_contents = 0
    if item.text is not UNSET and item.text is not None:
        part.text = item.text
        num_contents = 1
    if item.pair is not UNSET and item.pair is not None:
        part.pair.SetInParent()
        part.pair.first, part.pair.second = item.pair.first or "", item.pair.second or ""
        num_contents += 1
    if item.token_ids is not UNSET and item.token_ids is not None:
        part.token_ids.SetInParent()
        part.token_ids.ids.extend(item.token_ids.ids or ())
        num_contents += 1
    if num_contents > 1:
        raise _wrong(index, "has more than one of text, pair and token_ids")


def _wrong(index: int, what: str) -> InvalidRequest:
    field = f"inputs[{index}]"
    return InvalidRequest(f"{field} {what}", reason="FIELD_INVALID", field=field)


def _truncation(value: str | int) -> Any:
    if isinstance(value, int):
        return value
    found = _TRUNCATION.values_by_name.get(value)
    if found is None:
        raise ValueError(value)
    return found.number


def num_names(body: PredictRequest) -> int:
    """How many names the body has, if none is in one object twice."""
    count = (body.inputs is not UNSET) + (body.return_logits is not UNSET)
    for item in body.inputs or ():
        count += (
            (item.task is not UNSET)
            + (item.version is not UNSET)
            + (item.text is not UNSET)
            + (item.pair is not UNSET)
            + (item.token_ids is not UNSET)
            + (item.truncation is not UNSET)
        )
        if pair := item.pair:
            count += (pair.first is not UNSET) + (pair.second is not UNSET)
        if token_ids := item.token_ids:
            count += token_ids.ids is not UNSET
    return count


def _prediction(prediction: inference_pb2.Prediction) -> dict[str, Any]:
    document: dict[str, Any] = {"task": prediction.task, "version": prediction.version}
    if (kind := prediction.WhichOneof("result")) is not None:
        document[kind] = _RESULTS[kind](getattr(prediction, kind))
    document["logits"] = numbers(prediction.logits)
    return document


def numbers(values: Sequence[float]) -> msgspec.Raw:
    """Numbers of 32 bits as JSON, each in the fewest digits that tell it apart from its neighbours."""
    if not values:
        return msgspec.Raw(b"[]")
    return msgspec.Raw(b"[" + b",".join(np.array(values, np.float32).astype("S").tolist()) + b"]")


def _status(error: Any) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(
        error, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


_RESULTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "classification": lambda found: {
        "label": found.label,
        "label_id": found.label_id,
        "scores": numbers(found.scores),
    },
    "multi_label": lambda found: {
        "labels": list(found.labels),
        "label_ids": list(found.label_ids),
        "scores": numbers(found.scores),
    },
    "regression": lambda found: {"score": float(str(np.float32(found.score)))},
    "embedding": lambda found: {"values": numbers(found.values)},
    "error": _status,
}
