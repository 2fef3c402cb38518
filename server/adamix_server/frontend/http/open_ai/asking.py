"""Bodies of OpenAI's routes -> messages of `adamix.v1`. Pure functions.

What is in range is the called service's to say; here is refused what no message can hold, and what does not go
together.
"""

from collections.abc import Sequence

from adamix.errors import InvalidRequest
from adamix_protos.v1 import inference_pb2
from adamix_server.frontend.http.open_ai.bodies import (
    ChatBody,
    ChatTurn,
    CompletionBody,
    InputBody,
    Prompts,
    TextBody,
    refuse,
    unsupported,
)
from adamix_server.frontend.http.open_ai.models import Model
from adamix_server.limits.generation import MAX_LOGPROBS
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL
from adamix_server.limits.open_ai import MAX_EMBEDDED_INPUTS, MAX_PROMPTS

_INT32 = range(-(1 << 31), 1 << 31)
_SEEDS = range(-(1 << 63), 1 << 64)
# OpenAI's own; over gRPC it is the likeliest token if nothing is said.
_TEMPERATURE = 1.0
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
Content = str | list[int]


def completions(body: CompletionBody, model: Model) -> list[inference_pb2.GenerateRequest]:
    """One request for each prompt. Raises InvalidRequest."""
    contents = _contents(body.prompt, "prompt", MAX_PROMPTS)
    if body.logprobs is not None:
        _in_range("logprobs", body.logprobs, 0, MAX_LOGPROBS)
    # Of none at all, the server says nothing of the token that was chosen either.
    logprobs = None if body.logprobs is None else max(1, body.logprobs)
    return [_request(body, model, logprobs, content) for content in contents]


def chat(body: ChatBody, model: Model) -> inference_pb2.GenerateRequest:
    """Raises InvalidRequest."""
    top = body.top_logprobs or 0
    _in_range("top_logprobs", top, 0, MAX_LOGPROBS)
    if top and not body.logprobs:
        raise _out_of_range("top_logprobs", "top_logprobs needs logprobs to be true")
    turns = [_turn(turn, f"messages[{index}]") for index, turn in enumerate(body.messages)]
    request = _request(body, model, max(1, top) if body.logprobs else None, None)
    # Set, even if there are none.
    request.chat.SetInParent()
    request.chat.messages.extend(turns)
    return request


def inputs(body: InputBody, model: Model) -> list[inference_pb2.PredictRequest]:
    """Requests for all texts in their order, each with as many as a call may have. Raises InvalidRequest."""
    contents = _contents(body.input, "input", MAX_EMBEDDED_INPUTS)
    if body.truncate_prompt_tokens not in (None, -1):
        raise unsupported(
            "truncate_prompt_tokens", "a text is cut to what its task takes, which is -1, or not at all; leave it out"
        )
    cuts = body.truncate_prompt_tokens == -1
    truncation = inference_pb2.TRUNCATION_RIGHT if cuts else inference_pb2.TRUNCATION_ERROR
    items = []
    for index, content in enumerate(contents):
        item = inference_pb2.PredictInput(task=model.task, version=model.digest, truncation=truncation)
        if isinstance(content, str):
            item.text = content
        else:
            item.token_ids.ids.extend(_token_ids(content, f"input[{index}]"))
        items.append(item)
    most = MAX_INPUTS_PER_CALL
    return [inference_pb2.PredictRequest(inputs=items[at : at + most]) for at in range(0, len(items), most)]


def _contents(given: Prompts, field: str, most: int) -> list[Content]:
    """The texts, or ids, that a field has: one, or several. Raises InvalidRequest."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise InvalidRequest(f"{field} is empty", reason="TEXT_EMPTY", field=field)
    kinds = {type(each) for each in given}
    if kinds == {int}:
        return [[each for each in given if isinstance(each, int)]]
    if int in kinds or len(kinds) > 1:
        raise InvalidRequest(
            f"{field}: a text, token ids, a list of texts, or a list of lists of token ids",
            reason="FIELD_INVALID",
            field=field,
        )
    if len(given) > most:
        raise InvalidRequest(f"{field} has up to {most:,} texts, not {len(given):,}", reason="INPUT_COUNT", field=field)
    return [each for each in given if not isinstance(each, int)]


def _request(
    body: TextBody, model: Model, logprobs: int | None, content: Content | None
) -> inference_pb2.GenerateRequest:
    request = inference_pb2.GenerateRequest(
        task=model.task,
        version=model.digest,
        ignore_eos=bool(body.ignore_eos),
        stop=_stops(body.stop),
        stop_token_ids=_token_ids(body.stop_token_ids or (), "stop_token_ids"),
    )
    if isinstance(content, str):
        request.prompt = content
    elif content is not None:
        request.token_ids.ids.extend(_token_ids(content, "prompt"))
    if logprobs is not None:
        request.logprobs = logprobs
    if (most := _most_tokens(body)) is not None:
        request.max_new_tokens = most
    _fill_sampling(request.sampling, body)
    if body.stream_options is not None:
        if not body.stream:
            raise unsupported("stream_options", "it is for streams alone; set stream, or leave it out")
        refuse(body.stream_options, "stream_options.")
    return request


def _fill_sampling(sampling: inference_pb2.Sampling, body: TextBody) -> None:
    sampling.temperature = _TEMPERATURE if body.temperature is None else body.temperature
    for name in ("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        if (value := getattr(body, name)) is not None:
            setattr(sampling, name, value)
    if body.top_k is not None:
        # vLLM's word for all of them.
        sampling.top_k = 0 if body.top_k == -1 else _int32("top_k", body.top_k)
    if body.seed is not None:
        if body.seed not in _SEEDS:
            raise _out_of_range("seed", "seed is no integer of 64 bits")
        sampling.seed = body.seed % (1 << 64)


def _most_tokens(body: TextBody) -> int | None:
    given = {name: getattr(body, name) for name in ("max_tokens", "max_completion_tokens")}
    values = {name: value for name, value in given.items() if value is not None}
    if not values:
        return None
    if len(set(values.values())) > 1:
        raise _out_of_range("max_tokens", "max_tokens and max_completion_tokens differ; give one of them")
    name, value = next(iter(values.items()))
    if value < 1:
        raise _out_of_range(name, f"{name} must be 1 or more, not {value}")
    return _int32(name, value)


def _stops(stop: str | list[str] | None) -> Sequence[str]:
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else stop


def _token_ids(ids: Sequence[int], field: str) -> Sequence[int]:
    """`ids`, if a message can hold them. Raises InvalidRequest (`TOKEN_ID_OUT_OF_RANGE`)."""
    if ids and not (min(ids) in _INT32 and max(ids) in _INT32):
        raise InvalidRequest(
            f"{field}: a token id is outside the vocabulary", reason="TOKEN_ID_OUT_OF_RANGE", field=field
        )
    return ids


def _turn(turn: ChatTurn, field: str) -> inference_pb2.ChatMessage:
    role = _ROLES.get(turn.role)
    if role is None:
        raise InvalidRequest(
            f"{field}.role is one of {', '.join(_ROLES)}", reason="CHAT_INVALID", field=f"{field}.role"
        )
    refuse(turn, f"{field}.")
    if turn.content is None:
        raise InvalidRequest(f"{field}.content is missing", reason="FIELD_MISSING", field=f"{field}.content")
    if isinstance(turn.content, str):
        return inference_pb2.ChatMessage(role=role, content=turn.content)
    texts = []
    for index, part in enumerate(turn.content):
        at = f"{field}.content[{index}]"
        if part.type != "text":
            raise unsupported(f"{at}.type", "this server reads text alone")
        if part.text is None:
            raise InvalidRequest(f"{at}.text is missing", reason="FIELD_MISSING", field=f"{at}.text")
        texts.append(part.text)
    # As vLLM and llama.cpp join them.
    return inference_pb2.ChatMessage(role=role, content="\n".join(texts))


def _int32(name: str, value: int) -> int:
    if value not in _INT32:
        raise _out_of_range(name, f"{name} is out of range")
    return value


def _in_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise _out_of_range(name, f"{name} must be in {low}..{high}, not {value}")


def _out_of_range(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, reason="OUT_OF_RANGE", field=name)
