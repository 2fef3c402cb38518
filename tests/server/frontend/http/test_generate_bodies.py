"""Bodies of Triton's generate extension: what they ask for, and what is said of those that cannot be."""

import json
from typing import Any

import pytest

from adamix.errors import InvalidRequest, NotFound
from adamix_protos.v1 import inference_pb2 as pb
from adamix_server.frontend.http.open_inference.generating import in_the_callers_words, to_answer, to_request


def asked(body: dict[str, Any], *, is_stream: bool = False) -> pb.GenerateRequest:
    return to_request("m", "v", json.dumps(body).encode(), is_stream=is_stream)[0]


def test_every_parameter_has_its_field() -> None:
    parameters = {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.25,
        "repetition_penalty": 1.5,
        "presence_penalty": -1,
        "frequency_penalty": 1,
        "no_repeat_ngram_size": 2,
        "seed": 2**64 - 1,
        "stop": ["a", "b"],
        "ignore_eos": True,
        "stream": False,
    }
    sampling = {k: v for k, v in parameters.items() if k not in ("max_tokens", "stop", "ignore_eos", "stream")}
    assert asked({"text_input": "x", "parameters": parameters}) == pb.GenerateRequest(
        task="m",
        version="v",
        prompt="x",
        max_new_tokens=5,
        sampling=pb.Sampling(**sampling),
        stop=["a", "b"],
        ignore_eos=True,
    )


def test_what_is_not_given_is_the_servers_to_choose() -> None:
    bare = pb.GenerateRequest(task="m", version="v", prompt="x", sampling=pb.Sampling())
    assert asked({"text_input": "x"}) == asked({"text_input": "x", "parameters": {}}) == bare
    assert list(asked({"text_input": "x", "parameters": {"stop": "end"}}).stop) == ["end"]
    assert asked({"text_input": "x", "parameters": {"stream": True}}, is_stream=True) == bare


@pytest.mark.parametrize(
    ("body", "reason", "field"),
    [
        ({}, "FIELD_INVALID", None),
        ({"text_input": ["a"]}, "FIELD_INVALID", "text_input"),
        ({"text_input": "a", "max_tokens": 3}, "UNKNOWN_FIELD", "max_tokens"),
        ({"text_input": "a", "parameters": {"beams": 3}}, "UNKNOWN_FIELD", "parameters.beams"),
        ({"text_input": "a", "parameters": {"top_k": 2**31}}, "FIELD_INVALID", "parameters.top_k"),
        ({"text_input": "a", "parameters": {"temperature": "hot"}}, "FIELD_INVALID", "parameters.temperature"),
        ({"text_input": "a", "parameters": {"temperature": True}}, "FIELD_INVALID", "parameters.temperature"),
        ({"text_input": "a", "parameters": {"max_tokens": 0}}, "OUT_OF_RANGE", "parameters.max_tokens"),
        ({"text_input": "a", "parameters": {"seed": -1}}, "OUT_OF_RANGE", "parameters.seed"),
        ({"text_input": "a", "parameters": {"seed": 2**64}}, "OUT_OF_RANGE", "parameters.seed"),
        ({"text_input": "a", "parameters": {"stream": True}}, "OUT_OF_RANGE", "parameters.stream"),
    ],
)
def test_what_cannot_be_asked(body: dict[str, Any], reason: str, field: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(body)
    assert (caught.value.reason, caught.value.field) == (reason, field)


def test_how_it_ended_is_said_with_the_last_piece() -> None:
    assert to_answer("m", "", "a", pb.GenerateResponse(version="d")) == {
        "model_name": "m",
        "model_version": "d",
        "text_output": "a",
    }
    usage = pb.Usage(prompt_tokens=3, generated_tokens=2, cached_tokens=1)
    last = pb.GenerateResponse(version="d", finish_reason="FINISH_REASON_LENGTH", usage=usage, seed=2**64 - 1)
    assert to_answer("m", "7", "b", last) == {
        "id": "7",
        "model_name": "m",
        "model_version": "d",
        "text_output": "b",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 3, "generated_tokens": 2, "cached_tokens": 1},
        "seed": 2**64 - 1,
    }


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("prompt", "text_input"),
        ("max_new_tokens", "parameters.max_tokens"),
        ("sampling.top_k", "parameters.top_k"),
        ("stop[2]", "parameters.stop[2]"),
        ("task", "task"),
    ],
)
def test_a_field_is_named_as_its_caller_wrote_it(field: str, said: str) -> None:
    assert in_the_callers_words(InvalidRequest("no", field=field)).field == said


def test_other_errors_stay_as_they_are() -> None:
    error = NotFound("task not found")
    assert in_the_callers_words(error) is error
    assert error.field is None
