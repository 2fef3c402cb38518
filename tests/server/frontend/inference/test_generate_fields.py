"""Every field of a GenerateRequest beside its prompt, at the ends of its range and beyond them."""

import math
import tracemalloc
from typing import Any

import pytest

from adamix.errors import AdamixError, FailedPrecondition, InvalidRequest
from adamix.generation.sampling import GREEDY, MAX_SEED
from adamix_protos.v1 import inference_pb2 as pb
from adamix_server.frontend.inference import generate_fields
from adamix_server.frontend.inference.generate_fields import Asked
from adamix_server.limits.generation import MAX_BEAMS, MAX_LOGPROBS, MAX_STOP_BYTES, MAX_STOP_TOKENS, MAX_STOPS

VOCAB, WINDOW = 300, 128


def read(**fields: Any) -> Asked:
    """`sampling_x` is the field `x` of `sampling`."""
    sampling = {name.removeprefix("sampling_"): fields.pop(name) for name in [*fields] if name.startswith("sampling_")}
    request = pb.GenerateRequest(sampling=pb.Sampling(**sampling) if sampling else None, **fields)
    return generate_fields.read(request, vocab_size=VOCAB, window=WINDOW)


def refusal(**fields: Any) -> tuple[str, str | None]:
    with pytest.raises(AdamixError) as caught:
        read(**fields)
    assert isinstance(caught.value, InvalidRequest)
    return caught.value.reason, caught.value.field


def test_of_too_many_stops_nothing_is_copied() -> None:
    for fields in ({"stop": ["ab"] * 50_000}, {"stop_token_ids": [1 << 20] * 50_000}):
        request = pb.GenerateRequest(**fields)
        tracemalloc.start()
        with pytest.raises(InvalidRequest, match="up to"):
            generate_fields.read(request, vocab_size=VOCAB, window=WINDOW)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 50_000


def test_what_is_not_given_is_greedy_and_plain() -> None:
    asked = read()
    assert asked.sampling == GREEDY
    assert (asked.max_new_tokens, asked.stops, asked.stop_ids, asked.logprobs) == (None, (), (), None)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("num_beams", 0, 1),
        ("logprobs", 0, MAX_LOGPROBS),
        ("sampling_temperature", 0, 5),
        ("sampling_top_k", 0, VOCAB),
        ("sampling_top_p", 2**-20, 1),
        ("sampling_min_p", 0, 1 - 2**-20),
        ("sampling_repetition_penalty", 2**-20, 10),
        ("sampling_presence_penalty", -2, 2),
        ("sampling_frequency_penalty", -2, 2),
        ("sampling_length_penalty", -5, 5),
        ("sampling_no_repeat_ngram_size", 0, 64),
        ("sampling_seed", 0, MAX_SEED),
    ],
)
def test_the_ends_of_a_range_are_in_it(name: str, least: float, most: float) -> None:
    for value in (least, most):
        asked = read(**{name: value})
        field = name.removeprefix("sampling_")
        if field != name and field != "length_penalty":
            assert getattr(asked.sampling, field) == value


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("num_beams", [-1, MAX_BEAMS + 1, 2**31 - 1]),
        ("logprobs", [-1, MAX_LOGPROBS + 1, 2**31 - 1]),
        ("sampling_temperature", [-0.1, 5.1, 1e30, math.inf, math.nan]),
        ("sampling_top_k", [-1, VOCAB + 1, 2**31 - 1]),
        ("sampling_top_p", [0, -0.1, 1.1, math.inf, math.nan]),
        ("sampling_min_p", [-0.1, 1, math.inf, math.nan]),
        ("sampling_repetition_penalty", [0, -0.1, 10.1, math.inf, math.nan]),
        ("sampling_presence_penalty", [-2.1, 2.1, -math.inf, math.nan]),
        ("sampling_frequency_penalty", [-2.1, 2.1, math.inf, math.nan]),
        ("sampling_length_penalty", [-5.1, 5.1, math.inf, math.nan]),
        ("sampling_no_repeat_ngram_size", [-1, 65, 2**31 - 1]),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(name: str, bad: list[float]) -> None:
    for value in bad:
        field = name.replace("sampling_", "sampling.")
        assert refusal(**{name: value}) == ("OUT_OF_RANGE", field), value


def test_new_tokens() -> None:
    assert [read(max_new_tokens=number).max_new_tokens for number in (1, WINDOW)] == [1, WINDOW]
    for number in (-1, WINDOW + 1, 2**31 - 1):
        assert refusal(max_new_tokens=number) == ("OUT_OF_RANGE", "max_new_tokens")


def test_a_seed_is_drawn_where_something_else_is() -> None:
    drawn = {read(sampling_temperature=1.0).sampling.seed for _ in range(3)}
    assert len(drawn) == 3
    assert None not in drawn
    assert read(sampling_temperature=1.0, sampling_seed=0).sampling.seed == 0
    assert read(sampling_top_p=0.5).sampling.seed is None


def test_stops() -> None:
    most = ["x" * MAX_STOP_BYTES, "日" * (MAX_STOP_BYTES // 3), *"123456"]
    assert len(most) == MAX_STOPS
    assert read(stop=most).stops == tuple(most)
    assert refusal(stop=[*most, "9"]) == ("STOP_INVALID", "stop")
    assert refusal(stop=["a", "b", ""]) == ("STOP_INVALID", "stop[2]")
    assert refusal(stop=["x" * (MAX_STOP_BYTES + 1)]) == ("STOP_INVALID", "stop[0]")
    assert refusal(stop=["a", "日" * (MAX_STOP_BYTES // 3 + 1)]) == ("STOP_INVALID", "stop[1]")


def test_stop_tokens() -> None:
    most = [0, VOCAB - 1, *range(MAX_STOP_TOKENS - 2)]
    assert read(stop_token_ids=most).stop_ids == tuple(most)
    assert refusal(stop_token_ids=[*most, 1]) == ("STOP_INVALID", "stop_token_ids")
    assert refusal(stop_token_ids=[1, -1]) == ("TOKEN_ID_OUT_OF_RANGE", "stop_token_ids[1]")
    assert refusal(stop_token_ids=[VOCAB]) == ("TOKEN_ID_OUT_OF_RANGE", "stop_token_ids[0]")


@pytest.mark.parametrize("number", [2, MAX_BEAMS])
def test_beams_are_not_served(number: int) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        read(num_beams=number)
    assert caught.value.reason == "BEAMS_NOT_SERVED"
    assert refusal(num_beams=number, sampling_temperature=1.0) == ("OUT_OF_RANGE", "sampling.temperature")
