"""What hostile and mistaken clients send: each is refused in OpenAI's shape, and nothing is computed."""

import json
from typing import Any

import httpx2
import pytest

from adamix.texts import MAX_TEXT_BYTES
from adamix_server.limits.http import MAX_BODY_BYTES
from adamix_testing.harness import Harness

JSON = {"content-type": "application/json"}
COMPLETIONS, CHATS, EMBEDDINGS, CLASSIFY = "/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/classify"
ALL = (COMPLETIONS, CHATS, EMBEDDINGS, CLASSIFY)


async def refused(
    harness: Harness, path: str, body: bytes | dict[str, Any], headers: dict[str, str] = JSON, method: str = "POST"
) -> tuple[int, str, str | None]:
    """The status, code and param of a refusal."""
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    async with httpx2.AsyncClient(base_url=f"http://{harness.http}", verify=False) as client:
        answer = await client.request(method, path, content=content, headers=headers)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    found = answer.json()
    assert found.keys() == {"error"}
    error = found["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert len(error["message"]) < 600
    assert not harness.engine.submits
    return answer.status_code, error["code"], error["param"]


@pytest.mark.parametrize("path", ALL)
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"model=writer", "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        (b'{"model": NaN}', "invalid_json"),
        (b'{"x": ' + b"[" * 50_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b'{"model": 1}', "invalid_type"),
        (b'{"model": null}', "invalid_type"),
        (b"{}", "missing_required_parameter"),
        (b'{"model": "\\u0000"}', "model_not_found"),
        (b'{"model": "' + b"x" * 100_000 + b'"}', "model_not_found"),
        (b'{"model": "../writer"}', "model_not_found"),
        (b'{"model": "tenants/other/tasks/writer"}', "model_not_found"),
        (b'{"model": "tiny", "n": 99}', "model_not_found"),
    ],
)
async def test_whatever_is_no_question_to_a_model(writing: Harness, path: str, body: bytes, code: str) -> None:
    status, said, _ = await refused(writing, path, body)
    assert (status, said) == (404 if code == "model_not_found" else 400, code)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 415, "content_type_unsupported"),
        ({"content-type": "text/plain"}, 415, "content_type_unsupported"),
        ({"content-type": "multipart/form-data; boundary=x"}, 415, "content_type_unsupported"),
        ({"content-type": "application/json; charset=latin-1"}, 415, "content_type_unsupported"),
        (JSON | {"content-encoding": "gzip"}, 415, "content_encoding_unsupported"),
        (JSON | {"origin": "https://evil.example"}, 403, "origin_foreign"),
        (JSON | {"adamix-timeout-s": "soon"}, 400, "timeout_invalid"),
    ],
)
async def test_how_a_body_is_sent(writing: Harness, headers: dict[str, str], status: int, code: str) -> None:
    found = await refused(writing, COMPLETIONS, {"model": "writer", "prompt": "x"}, headers)
    assert found[:2] == (status, code)


async def test_a_body_is_no_larger_than_a_message(writing: Harness) -> None:
    body = b'{"model": "writer", "prompt": "' + b"x" * MAX_BODY_BYTES + b'"}'
    assert (await refused(writing, COMPLETIONS, body))[:2] == (413, "body_too_large")


async def test_a_name_twice_is_refused(writing: Harness) -> None:
    body = b'{"model": "writer", "prompt": "x", "prompt": "y"}'
    assert (await refused(writing, COMPLETIONS, body))[:2] == (400, "invalid_json")
    body = b'{"model": "writer", "messages": [{"role": "user", "content": "x", "content": "y"}]}'
    assert (await refused(writing, CHATS, body))[:2] == (400, "invalid_json")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": ""}, "text_empty", "prompt"),
        ({"prompt": []}, "text_empty", "prompt"),
        ({"prompt": [[]]}, "text_empty", "prompt"),
        ({"prompt": ["a", 1]}, "invalid_type", "prompt"),
        ({"prompt": [[1, "a"]]}, "invalid_type", "prompt[0][1]"),
        ({"prompt": {"text": "a"}}, "invalid_type", "prompt"),
        ({"prompt": [-1]}, "token_id_out_of_range", "prompt"),
        ({"prompt": [1 << 40]}, "token_id_out_of_range", "prompt"),
        ({"prompt": [1] * 5_000}, "context_length_exceeded", "prompt"),
        ({"prompt": "x" * (MAX_TEXT_BYTES + 1)}, "text_too_large", "prompt"),
        ({"prompt": ["x"] * 65}, "input_count", "prompt"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": -1}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1 << 70}, "invalid_value", "max_tokens"),
        ({"max_tokens": 1.5}, "invalid_type", "max_tokens"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"temperature": -0.1}, "invalid_value", "temperature"),
        ({"temperature": 1e300}, "invalid_value", "temperature"),
        ({"top_p": 0}, "invalid_value", "top_p"),
        ({"top_k": -2}, "invalid_value", "top_k"),
        ({"min_p": 1}, "invalid_value", "min_p"),
        ({"presence_penalty": 3}, "invalid_value", "presence_penalty"),
        ({"seed": 1 << 64}, "invalid_value", "seed"),
        ({"stop": [""]}, "stop_invalid", "stop[0]"),
        ({"stop": ["x" * 65]}, "stop_invalid", "stop[0]"),
        ({"stop": 3}, "invalid_type", "stop"),
        ({"stop_token_ids": [10**6]}, "token_id_out_of_range", "stop_token_ids[0]"),
        ({"logprobs": 99}, "invalid_value", "logprobs"),
        ({"logprobs": True}, "invalid_type", "logprobs"),
        ({"prompt": ["x"] * 64, "max_tokens": 1000, "logprobs": 20}, "answer_too_large", "logprobs"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"stream_options": {"include_usage": True}}, "unsupported_parameter", "stream_options"),
        ({"stream": True, "stream_options": {"usage": True}}, "unknown_parameter", "stream_options.usage"),
        ({"echo": True}, "unsupported_parameter", "echo"),
        ({"__proto__": {}}, "unknown_parameter", "__proto__"),
    ],
)
async def test_what_a_completion_cannot_be(writing: Harness, fields: dict[str, Any], code: str, param: str) -> None:
    found = await refused(writing, COMPLETIONS, {"model": "writer", "prompt": "x"} | fields)
    assert found == (400, code, param)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": ""}, "text_empty", "input"),
        ({"input": []}, "text_empty", "input"),
        ({"input": ["", ""]}, "text_empty", "input[0]"),
        ({"input": [99]}, "token_id_out_of_range", "input"),
        ({"input": [[5], [1 << 40]]}, "token_id_out_of_range", "input[1]"),
        ({"input": [5] * 17}, "context_length_exceeded", "input"),
        ({"input": None}, "invalid_type", "input"),
        ({"encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"dimensions": 0}, "unsupported_parameter", "dimensions"),
        ({"truncate_prompt_tokens": 5}, "unsupported_parameter", "truncate_prompt_tokens"),
        ({"inputs": "x"}, "unknown_parameter", "inputs"),
    ],
)
async def test_what_an_embedding_cannot_be_of(
    predicting: Harness, fields: dict[str, Any], code: str, param: str
) -> None:
    found = await refused(predicting, EMBEDDINGS, {"model": "vector", "input": "w1"} | fields)
    assert found == (400, code, param)


@pytest.mark.parametrize("path", ["gpt-4o", "..", "%2e%2e%2fwriter", "writer%2f..", "writer@", "x" * 5_000])
async def test_models_that_there_are_not(writing: Harness, path: str) -> None:
    async with httpx2.AsyncClient(verify=False) as client:
        answer = await client.get(f"http://{writing.http}/v1/models/{path}")
    assert answer.status_code == 404


async def test_a_path_that_is_no_text(writing: Harness) -> None:
    assert (await refused(writing, "/v1/models/%ff", b"", {}, "GET"))[0] == 400
    assert (await refused(writing, "/v1/models/%00", b"", {}, "GET"))[0] == 400


@pytest.mark.parametrize("path", ALL)
async def test_another_method_is_refused(writing: Harness, path: str) -> None:
    assert (await refused(writing, path, b"", {}, "GET"))[:2] == (405, "method_not_allowed")
