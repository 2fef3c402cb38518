"""Triton's generate extension: a text in, a text out, or its pieces as they come. Pure functions.

`text_input` is the prompt, `parameters` say how the text is drawn; what is out of range the servicer says in its own
words, which `in_the_callers_words` puts into those of the body.
"""

from typing import Annotated, Any

import msgspec

from adamix.errors import AdamixError, Code, InvalidRequest
from adamix_protos.v1 import inference_pb2
from adamix_server.frontend.http.bodies import decode_json
from adamix_server.limits.http import MAX_BODY_ITEMS

_Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_MAX_SEED = 2**64 - 1
_SAMPLED = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "seed",
)


class _Parameters(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    stream: bool | None = None
    max_tokens: _Int32 | None = None
    temperature: float | None = None
    top_k: _Int32 | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    no_repeat_ngram_size: _Int32 | None = None
    seed: int | None = None
    stop: str | Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_BODY_ITEMS)] = ()
    ignore_eos: bool = False


class GenerateBody(msgspec.Struct, forbid_unknown_fields=True):
    """A text for a model to go on with."""

    text_input: str
    id: str = ""
    parameters: _Parameters = _Parameters()


_BODIES = msgspec.json.Decoder(GenerateBody)


def to_request(model: str, version: str, body: bytes, *, is_stream: bool) -> tuple[inference_pb2.GenerateRequest, str]:
    """What a body asks of a model, and the id that its answers are to have.

    Args:
        is_stream: its route answers in pieces; `stream: true` is no parameter of the other one.

    Raises:
        InvalidRequest: it is not the JSON of a request, or asks for what has no such message.
    """
    asked = decode_json(body, _BODIES)
    parameters = asked.parameters
    if parameters.stream and not is_stream:
        raise _out_of_range("stream", "generate answers in one piece; ask generate_stream for a stream")
    if parameters.max_tokens == 0:
        raise _out_of_range("max_tokens", "max_tokens must be at least 1")
    if parameters.seed is not None and not 0 <= parameters.seed <= _MAX_SEED:
        raise _out_of_range("seed", f"seed must be in 0..{_MAX_SEED}")
    given = {name: value for name in _SAMPLED if (value := getattr(parameters, name)) is not None}
    request = inference_pb2.GenerateRequest(
        task=model,
        version=version,
        prompt=asked.text_input,
        max_new_tokens=parameters.max_tokens or 0,
        sampling=inference_pb2.Sampling(**given),
        stop=[parameters.stop] if isinstance(parameters.stop, str) else parameters.stop,
        ignore_eos=parameters.ignore_eos,
    )
    return request, asked.id


def to_answer(model: str, id_: str, text: str, message: inference_pb2.GenerateResponse) -> dict[str, Any]:
    """A text, or a piece of one; with how it ended, if `message` is the last one."""
    said: dict[str, Any] = {"id": id_} if id_ else {}
    said |= {"model_name": model, "model_version": message.version, "text_output": text}
    if message.finish_reason:
        usage = message.usage
        said["finish_reason"] = inference_pb2.FinishReason.Name(message.finish_reason)[len("FINISH_REASON_") :].lower()
        said["usage"] = {
            "prompt_tokens": usage.prompt_tokens,
            "generated_tokens": usage.generated_tokens,
            "cached_tokens": usage.cached_tokens,
        }
        said["seed"] = message.seed
    return said


def in_the_callers_words(error: AdamixError) -> AdamixError:
    """An error of a field of the message, with the field of the body in its place."""
    if error.code is not Code.INVALID_ARGUMENT or not error.field:
        return error
    field = error.field
    if field == "prompt":
        field = "text_input"
    elif field == "max_new_tokens":
        field = "parameters.max_tokens"
    elif field.startswith("sampling."):
        field = f"parameters.{field.removeprefix('sampling.')}"
    elif field.startswith("stop"):
        field = f"parameters.{field}"
    error.field = field
    return error


def _out_of_range(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, reason="OUT_OF_RANGE", field=f"parameters.{name}")
