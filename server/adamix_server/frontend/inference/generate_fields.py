"""The fields of a `GenerateRequest` beside its prompt: each in its range, or refused by its name.

Pure: a message in, values out. Knows neither tasks nor tokens.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adamix.errors import FailedPrecondition, InvalidConfig, InvalidRequest
from adamix.generation.sampling import Sampling
from adamix_protos.v1 import inference_pb2
from adamix_server.limits.generation import (
    MAX_BEAMS,
    MAX_LOGPROBS,
    MAX_STOP_BYTES,
    MAX_STOP_TOKENS,
    MAX_STOPS,
)

# Of a value that is not in its range.
OUT_OF_RANGE = "OUT_OF_RANGE"
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
_MAX_LENGTH_PENALTY = 5.0


@dataclass(frozen=True, slots=True)
class Asked:
    """How an answer is asked for.

    Attributes:
        max_new_tokens: None if it was left to the server.
        sampling: with a seed, wherever anything is drawn.
        logprobs: how many alternatives of each token are reported; None reports no probabilities.
    """

    max_new_tokens: int | None
    sampling: Sampling
    stops: tuple[str, ...]
    stop_ids: tuple[int, ...]
    ignore_eos: bool
    logprobs: int | None
    return_token_ids: bool


def read(request: inference_pb2.GenerateRequest, *, vocab_size: int, window: int) -> Asked:
    """How an answer is asked for.

    Args:
        window: as many tokens as the backbone can see.

    Raises:
        InvalidRequest: a field is out of range; the error names it.
        FailedPrecondition: it asks for beams (`BEAMS_NOT_SERVED`).
    """
    _check("max_new_tokens", request.max_new_tokens, 0, window)
    _check("num_beams", request.num_beams, 0, MAX_BEAMS)
    _check("logprobs", request.logprobs, 0, MAX_LOGPROBS)
    sampling = _sampling(request.sampling, vocab_size)
    # As they came: of too many there may be millions, which are not copied to be told so.
    _check_stops(request.stop)
    _check_stop_ids(request.stop_token_ids, vocab_size)
    if request.num_beams > 1:
        if not sampling.is_greedy:
            raise InvalidRequest(
                "beams are searched, not drawn: leave out the temperature, or num_beams",
                reason=OUT_OF_RANGE,
                field="sampling.temperature",
            )
        raise FailedPrecondition("this server does not search beams; leave out num_beams", reason="BEAMS_NOT_SERVED")
    return Asked(
        max_new_tokens=request.max_new_tokens or None,
        sampling=sampling,
        stops=tuple(request.stop),
        stop_ids=tuple(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        logprobs=request.logprobs or None,
        return_token_ids=request.return_token_ids,
    )


def _sampling(message: inference_pb2.Sampling, vocab_size: int) -> Sampling:
    given = {name: getattr(message, name) for name in _SAMPLED if message.HasField(name)}
    try:
        sampling = Sampling(**given)
    except InvalidConfig as error:
        raise InvalidRequest(error.message, reason=OUT_OF_RANGE, field=f"sampling.{error.field}") from None
    _check("sampling.top_k", sampling.top_k, 0, vocab_size)
    _check("sampling.length_penalty", message.length_penalty, -_MAX_LENGTH_PENALTY, _MAX_LENGTH_PENALTY)
    if sampling.seed is None and not sampling.is_greedy:
        sampling = replace(sampling, seed=secrets.randbits(64))
    return sampling


def _check_stops(stops: Sequence[str]) -> None:
    if len(stops) > MAX_STOPS:
        raise InvalidRequest(f"up to {MAX_STOPS} stops, not {len(stops)}", reason="STOP_INVALID", field="stop")
    for index, stop in enumerate(stops):
        if not 1 <= len(stop.encode()) <= MAX_STOP_BYTES:
            raise InvalidRequest(
                f"a stop has 1 to {MAX_STOP_BYTES} bytes", reason="STOP_INVALID", field=f"stop[{index}]"
            )


def _check_stop_ids(stop_ids: Sequence[int], vocab_size: int) -> None:
    if len(stop_ids) > MAX_STOP_TOKENS:
        raise InvalidRequest(
            f"up to {MAX_STOP_TOKENS} stop tokens, not {len(stop_ids)}", reason="STOP_INVALID", field="stop_token_ids"
        )
    for index, token_id in enumerate(stop_ids):
        check_token_id(token_id, vocab_size, f"stop_token_ids[{index}]")


def check_token_id(token_id: int, vocab_size: int, field: str) -> None:
    """Raises InvalidRequest (`TOKEN_ID_OUT_OF_RANGE`) if there is no such token."""
    if not 0 <= token_id < vocab_size:
        raise InvalidRequest(
            f"a token id is outside the vocabulary, 0 to {vocab_size - 1}",
            reason="TOKEN_ID_OUT_OF_RANGE",
            field=field,
        )


def _check(field: str, value: float, low: float, high: float) -> None:
    # As one comparison, because NaN is in no interval.
    if not low <= value <= high:
        name = field.rpartition(".")[2]
        raise InvalidRequest(f"{name} must be in {low}..{high}, not {value}", reason=OUT_OF_RANGE, field=field)
