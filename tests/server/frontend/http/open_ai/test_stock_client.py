"""The unmodified `openai` package against a real front end: what it reads, and what it raises."""

import asyncio
import json
import socket
import struct

import numpy as np
import openai
import pytest

from adamix.errors import Unavailable
from adamix_testing.byte_tokenizers import FIRST_BYTE
from adamix_testing.fake_engine import FakeEngine, Said
from adamix_testing.generating import decoder, holding_decoder, saying, tokens_of
from adamix_testing.harness import Harness
from adamix_testing.stock_clients import open_ai

HARD = "naïve 日本語 🙂\n\n x"
USER = {"role": "user", "content": "abc"}


async def test_a_completion(writing: Harness) -> None:
    saying(HARD)(writing.engine)
    async with open_ai(writing) as client:
        answer = await client.completions.create(model="writer", prompt="abc")
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.index, choice.logprobs) == (HARD, "stop", 0, None)
    assert (answer.object, answer.model) == ("text_completion", "writer")
    assert answer.id.startswith("cmpl-")
    assert answer.usage is not None
    num_generated = len(HARD.encode())
    assert answer.usage.to_dict() == {
        "prompt_tokens": 3,
        "completion_tokens": num_generated,
        "total_tokens": 3 + num_generated,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_a_chat(writing: Harness) -> None:
    holding_decoder(writing.engine)
    async with open_ai(writing) as client:
        turns = [{"role": "developer", "content": "be short"}, {"role": "user", "content": "hi"}]
        asked = asyncio.create_task(client.chat.completions.create(model="writer", messages=turns))
        await writing.until(lambda: len(writing.engine.held) == 1)
        row = writing.engine.held[0]
        writing.engine.cached_tokens = 2
        writing.engine.say(row, *tokens_of("ok"), finish="length")
        answer = await asked
    said = bytes(token - FIRST_BYTE for token in np.frombuffer(row.token_ids, "<i4").tolist())
    assert said == b"system:be short\nuser:hi\nassistant:"
    assert row.generate.sampling.temperature == 1.0
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "ok", "length")
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer.system_fingerprint == row.digest[:12]


async def test_what_was_answered_is_a_turn_of_the_next_chat(writing: Harness) -> None:
    saying("ok")(writing.engine)
    async with open_ai(writing) as client:
        first = await client.chat.completions.create(model="writer", messages=[USER])
        turns = [USER, first.choices[0].message, USER]
        again = await client.chat.completions.create(model="writer", messages=turns)
    assert again.choices[0].message.content == "ok"


@pytest.mark.parametrize("with_usage", [False, True])
async def test_a_streamed_chat(writing: Harness, with_usage: bool) -> None:
    saying("日本")(writing.engine)
    async with open_ai(writing) as client:
        options = {"stream_options": {"include_usage": True}} if with_usage else {}
        stream = await client.chat.completions.create(model="writer", messages=[USER], stream=True, **options)
        pieces = [piece async for piece in stream]
    if with_usage:
        last = pieces.pop()
        assert (last.choices, last.usage.total_tokens) == ([], 3 + len("user:\nassistant:") + 6)
    assert pieces[0].choices[0].delta.role == "assistant"
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "日本"
    assert [piece.choices[0].finish_reason for piece in pieces if piece.choices[0].finish_reason] == ["stop"]
    assert {(piece.id, piece.object, piece.usage) for piece in pieces} == {
        (pieces[0].id, "chat.completion.chunk", None)
    }


async def test_a_streamed_completion_of_several_prompts(writing: Harness) -> None:
    async with open_ai(writing) as client:
        stream = await client.completions.create(
            model="writer", prompt=["ab", "xyz"], stream=True, stream_options={"include_usage": True}
        )
        pieces = [piece async for piece in stream]
        whole = await client.completions.create(model="writer", prompt=["ab", "xyz"])
    # The engine says what it was asked with.
    texts = ["", ""]
    for piece in pieces[:-1]:
        texts[piece.choices[0].index] += piece.choices[0].text
    assert texts == ["ab", "xyz"] == [choice.text for choice in whole.choices]
    assert pieces[-1].usage is not None
    assert pieces[-1].usage == whole.usage
    assert whole.usage is not None
    assert whole.usage.total_tokens == 10


async def test_token_ids_are_a_prompt(writing: Harness) -> None:
    async with open_ai(writing) as client:
        answer = await client.completions.create(model="writer", prompt=tokens_of("cat"))
    assert answer.choices[0].text == "cat"


async def test_probabilities(writing: Harness) -> None:
    def likely(engine: FakeEngine) -> None:
        decoder(engine)
        pairs = struct.pack("<ifif", FIRST_BYTE + ord("a"), -0.5, FIRST_BYTE + ord("b"), -0.25)
        engine.script = lambda _: [Said(tokens_of("a"), logprobs=pairs), Said(finish="eos")]

    likely(writing.engine)
    async with open_ai(writing) as client:
        completion = await client.completions.create(model="writer", prompt="x", logprobs=1)
        chat = await client.chat.completions.create(
            model="writer",
            messages=[USER],
            logprobs=True,
            top_logprobs=1,
        )
    found = completion.choices[0].logprobs
    assert found is not None
    assert (found.tokens, found.token_logprobs, found.text_offset) == (["a"], [-0.5], [0])
    assert found.top_logprobs == [{"a": -0.5, "b": -0.25}]
    assert chat.choices[0].logprobs is not None
    assert chat.choices[0].logprobs.content is not None
    (token,) = chat.choices[0].logprobs.content
    assert (token.token, token.logprob, token.bytes) == ("a", -0.5, [ord("a")])
    assert [(other.token, other.logprob) for other in token.top_logprobs] == [("b", -0.25)]


async def test_who_leaves_ends_the_text(writing: Harness) -> None:
    holding_decoder(writing.engine)
    async with open_ai(writing) as client:
        stream = asyncio.create_task(client.completions.create(model="writer", prompt="abc", stream=True))
        await writing.until(lambda: len(writing.engine.held) == 1)
        row = writing.engine.held[0]
        writing.engine.say(row, *tokens_of("a"))
        pieces = await stream
        assert (await anext(pieces.__aiter__())).choices[0].text == "a"
        assert not writing.engine.cancelled
        await pieces.close()
        await writing.until(lambda: writing.engine.cancelled == [row.id])


async def test_who_reads_slowly_gets_few_large_events(writing: Harness) -> None:
    """The engine waits for nobody, and what it says meanwhile is kept in no other form than an answer."""
    width = 21
    pairs = struct.pack("<if", FIRST_BYTE + ord("a"), -0.5) * width
    holding_decoder(writing.engine)
    body = json.dumps(
        {
            "model": "writer",
            "prompt": "a",
            "stream": True,
            "logprobs": width - 1,
            "max_tokens": 1000,
            "ignore_eos": True,
        }
    )
    host, _, port = writing.http.rpartition(":")
    plain = socket.create_connection((host, int(port)))
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader, writer = await asyncio.open_connection(sock=plain, limit=4096)
    headers = f"host: localhost\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}"
    writer.write(f"POST /v1/completions HTTP/1.1\r\n{headers}\r\n\r\n{body}".encode())
    await writing.until(lambda: len(writing.engine.held) == 1)
    row, num_tokens = writing.engine.held[0], 1000
    for number in range(num_tokens):
        writing.engine.say(row, *tokens_of("a"), logprobs=pairs)
        if number % 10 == 0:
            await asyncio.sleep(0)
    writing.engine.say(row, finish="length")
    await asyncio.sleep(0.05)
    said = b""
    while part := await reader.read(1 << 16):
        said += part
    writer.close()
    events = [line for line in said.decode().splitlines() if line.startswith("data: {")]
    texts = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events]
    assert "".join(texts) == "a" * num_tokens
    assert len(texts) < num_tokens / 2
    assert "data: [DONE]" in said.decode()


async def test_an_error_in_the_middle_ends_the_stream(writing: Harness) -> None:
    def breaking(engine: FakeEngine) -> None:
        decoder(engine)
        engine.script = lambda _: [Said(tokens_of("a")), Said(error=Unavailable("gone", reason="ENGINE_RESTARTING"))]

    breaking(writing.engine)
    async with open_ai(writing) as client:
        stream = await client.chat.completions.create(model="writer", messages=[USER], stream=True)
        pieces = stream.__aiter__()
        said = [(await anext(pieces)).choices[0].delta.content for _ in range(2)]
        with pytest.raises(openai.APIError) as caught:
            await anext(pieces)
    assert said == ["", "a"]
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["code"] == "engine_restarting"


@pytest.mark.parametrize(
    ("fields", "error", "code", "param"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found", "model"),
        # Whatever else is wrong.
        ({"model": "gpt-4o", "n": 3, "temperature": 99}, openai.NotFoundError, "model_not_found", "model"),
        ({"model": "other@abcdef"}, openai.NotFoundError, "model_not_found", "model"),
        ({"n": 2}, openai.BadRequestError, "unsupported_parameter", "n"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "unsupported_parameter", "tools"),
        ({"temperature": 9}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"max_completion_tokens": 5000}, openai.BadRequestError, "invalid_value", "max_completion_tokens"),
        ({"stop": ["a"] * 9}, openai.BadRequestError, "stop_invalid", "stop"),
        ({"messages": []}, openai.BadRequestError, "chat_invalid", "messages"),
        (
            {"messages": [{"role": "user", "content": "x" * 2000}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        ({"extra_body": {"temprature": 1}}, openai.BadRequestError, "unknown_parameter", "temprature"),
    ],
)
async def test_what_it_raises(
    writing: Harness,
    fields: dict[str, object],
    error: type[openai.APIStatusError],
    code: str,
    param: str,
) -> None:
    async with open_ai(writing) as client:
        with pytest.raises(error) as caught:
            await client.chat.completions.create(**({"model": "writer", "messages": [USER]} | fields))
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.response.headers["x-request-id"]
    assert not writing.engine.submits
