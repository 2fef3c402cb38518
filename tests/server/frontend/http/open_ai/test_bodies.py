"""What bodies may say: what is read, what is refused, and by which name."""

import json
from typing import Any

import pytest

from adamix.errors import InvalidRequest
from adamix_server.frontend.http.open_ai.bodies import (
    ChatBody,
    CompletionBody,
    EmbeddingBody,
    InputBody,
    read_body,
    read_model,
)

ROUTES: dict[type, dict[str, Any]] = {
    CompletionBody: {"model": "m", "prompt": "x"},
    ChatBody: {"model": "m", "messages": [{"role": "user", "content": "x"}]},
    EmbeddingBody: {"model": "m", "input": "x"},
    InputBody: {"model": "m", "input": ["x"]},
}


def refusal(kind: Any, raw: str | bytes | dict[str, Any]) -> InvalidRequest:
    data = json.dumps(raw).encode() if isinstance(raw, dict) else raw if isinstance(raw, bytes) else raw.encode()
    with pytest.raises(InvalidRequest) as caught:
        read_body(data, kind)
    return caught.value


@pytest.mark.parametrize("kind", ROUTES)
def test_the_least_of_each_is_read_and_nulls_are_nothing(kind: Any) -> None:
    least = read_body(json.dumps(ROUTES[kind]).encode(), kind)
    others = {name: None for name in kind.__struct_fields__ if name not in ROUTES[kind]}
    with_nulls = read_body(json.dumps(ROUTES[kind] | others).encode(), kind)
    read = [getattr(least, name) for name in ROUTES[kind]]
    assert read == [getattr(with_nulls, name) for name in ROUTES[kind]]


@pytest.mark.parametrize("kind", ROUTES)
def test_an_unknown_field_is_refused_with_the_nearest(kind: Any) -> None:
    error = refusal(kind, ROUTES[kind] | {"modle": 1})
    assert (error.reason, error.field) == ("UNKNOWN_FIELD", "modle")
    assert "did you mean model?" in error.message


def test_a_name_without_a_neighbour_is_refused_alone() -> None:
    error = refusal(ChatBody, ROUTES[ChatBody] | {"q" * 1000: 1})
    assert error.reason == "UNKNOWN_FIELD"
    assert len(error.message) < 200
    assert "did you mean" not in error.message


def test_an_unknown_field_of_a_message_is_named_with_its_place() -> None:
    error = refusal(ChatBody, {"model": "m", "messages": [{"role": "user", "content": "x", "contents": 1}]})
    assert (error.reason, error.field) == ("UNKNOWN_FIELD", "messages[0].contents")


def test_what_is_missing_and_what_has_another_type() -> None:
    assert (refusal(CompletionBody, {"model": "m"}).reason, refusal(CompletionBody, {"model": "m"}).field) == (
        "FIELD_MISSING",
        "prompt",
    )
    error = refusal(CompletionBody, ROUTES[CompletionBody] | {"max_tokens": "many"})
    assert (error.reason, error.field, error.message) == (
        "FIELD_INVALID",
        "max_tokens",
        "max_tokens: Expected int, got str",
    )
    error = refusal(ChatBody, {"model": "m", "messages": [{"role": "user", "content": [1]}]})
    assert (error.reason, error.field) == ("FIELD_INVALID", "messages[0].content[0]")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"nope",
        b'{"model": "m", "prompt": "x"} x',
        b'{"model": "m", "prompt": "\xff"}',
        b'{"model": "m", "prompt": "\\ud800"}',
        b'{"model": "m", "prompt": "x", "temperature": NaN}',
        b'{"model": "m", "prompt": "x", "logit_bias": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    assert refusal(CompletionBody, raw).reason == "MALFORMED_MESSAGE"


@pytest.mark.parametrize("raw", [b"[]", b"null", b'"x"', b'{"model": 3}', b"{}"])
def test_what_names_no_model_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_model(raw)
    assert caught.value.reason in ("FIELD_INVALID", "FIELD_MISSING")


def test_the_model_is_read_whatever_else_is_wrong() -> None:
    assert read_model(b'{"n": 5, "nonsense": [{}], "model": "m", "temperature": "hot"}') == "m"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("n", True),
        ("best_of", 3),
        ("echo", True),
        ("suffix", "end"),
        ("logit_bias", {"50256": -100}),
        ("response_format", {"type": "json_object"}),
        ("store", True),
    ],
)
def test_what_is_not_served_is_refused_by_its_name(name: str, value: Any) -> None:
    error = refusal(CompletionBody, ROUTES[CompletionBody] | {name: value})
    assert (error.reason, error.field) == ("PARAMETER_UNSUPPORTED", name)
    assert name in error.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "auto"),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("parallel_tool_calls", True),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "s"}}),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
        ("n", 3),
    ],
)
def test_what_a_chat_cannot_have_is_refused_by_its_name(name: str, value: Any) -> None:
    error = refusal(ChatBody, ROUTES[ChatBody] | {name: value})
    assert (error.reason, error.field) == ("PARAMETER_UNSUPPORTED", name)


def test_what_asks_for_what_happens_anyway_is_taken() -> None:
    neutral = {"n": 1, "best_of": 1, "echo": False, "suffix": "", "logit_bias": {}, "store": False}
    read_body(json.dumps(ROUTES[CompletionBody] | neutral).encode(), CompletionBody)
    chat = {
        "n": 1,
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "service_tier": "auto",
    }
    read_body(json.dumps(ROUTES[ChatBody] | chat).encode(), ChatBody)


def test_what_says_nothing_of_the_answer_is_not_looked_at() -> None:
    ignored = {"user": {"any": "thing"}, "metadata": [1, 2], "safety_identifier": 3, "prompt_cache_key": "k"}
    assert read_body(json.dumps(ROUTES[ChatBody] | ignored).encode(), ChatBody).model == "m"
