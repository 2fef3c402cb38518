"""Triton's generate over HTTP: whole and in pieces the text of `Generate`; and its ends."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from adamix.errors import Unavailable
from adamix.files.manifest import BackboneSpec
from adamix_testing.adapters import WRITER, MakeAdapter
from adamix_testing.byte_tokenizers import byte_level, write_files
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine, Said
from adamix_testing.generating import WINDOW, decoder, holding_decoder, saying, tokens_of
from adamix_testing.harness import Harness, serving
from adamix_testing.manifests import make_spec

Start = Callable[[Callable[[FakeEngine], None]], Awaitable[Harness]]
PATH = "/v2/models/writer/generate"
USAGE = {"prompt_tokens": 3, "generated_tokens": 5, "cached_tokens": 0}


@pytest.fixture
async def start(
    store: Path, tmp_path: Path, spec: BackboneSpec, seed: Seed, make_adapter: MakeAdapter
) -> AsyncIterator[Start]:
    """Starts a front end of a decoder whose task `writer` says what the test lets it say."""
    tokenizer = byte_level()
    decoder_spec = make_spec(model_type="gpt2", vocab_size=tokenizer.get_vocab_size(), max_tokens=WINDOW)
    (directory := tmp_path / "decoder").mkdir()
    files = write_files(directory, tokenizer)
    seed("writer", make_adapter(WRITER, prompt="text"))
    async with AsyncExitStack() as stack:

        async def started(prepare: Callable[[FakeEngine], None]) -> Harness:
            front_end = serving(store, files, decoder_spec, prepare=prepare, http="127.0.0.1:0")
            return await stack.enter_async_context(front_end)

        yield started


def client_of(harness: Harness) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=f"http://{harness.http}", timeout=20)


def events_of(answer: httpx2.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "text/event-stream"
    *events, end = answer.text.split("\n\n")
    assert end == ""
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def test_whole_and_in_pieces(start: Start) -> None:
    harness = await start(saying("a\n日"))
    body = {"text_input": "abc", "id": "7"}
    async with client_of(harness) as client:
        whole = (await client.post(PATH, json=body)).json()
        digest = whole.pop("model_version")
        assert len(digest) == 64
        assert whole.pop("seed") == 0
        ends = {"finish_reason": "eos", "usage": USAGE}
        assert whole == {"id": "7", "model_name": "writer", "text_output": "a\n日", **ends}
        events = events_of(await client.post(f"{PATH}_stream", json=body))
        assert "".join(event["text_output"] for event in events) == "a\n日"
        assert all(event["id"] == "7" and event["model_version"] == digest for event in events)
        assert {name: events[-1][name] for name in ends} == ends
        assert not any("finish_reason" in event for event in events[:-1])
        at = f"/v2/models/tenants/default/tasks/writer/versions/{digest}/generate"
        named = (await client.post(at, json={"text_input": "abc", "parameters": {"stop": "\n"}})).json()
        assert (named["text_output"], named["finish_reason"]) == ("a", "stop")


async def test_what_cannot_be_asked_is_told_in_the_words_of_the_body(start: Start) -> None:
    harness = await start(decoder)
    cases: list[tuple[dict[str, Any], str, str | None]] = [
        ({"parameters": {"temperature": 9}}, "OUT_OF_RANGE", "parameters.temperature"),
        ({"parameters": {"max_tokens": WINDOW + 1}}, "OUT_OF_RANGE", "parameters.max_tokens"),
        ({"parameters": {"stop": ["a", ""]}}, "STOP_INVALID", "parameters.stop[1]"),
        ({"parameters": {"stop": ["a"] * 9}}, "STOP_INVALID", "parameters.stop"),
        ({"text_input": ""}, "TEXT_EMPTY", "text_input"),
        ({"text_input": "a" * WINDOW}, "PROMPT_TOO_LONG", "text_input"),
        ({"parameters": {"stop": 3}}, "FIELD_INVALID", "parameters.stop"),
        ({"prompt": "x"}, "UNKNOWN_FIELD", "prompt"),
        ({"stop": "x"}, "UNKNOWN_FIELD", "stop"),
    ]
    async with client_of(harness) as client:
        for path in (PATH, f"{PATH}_stream"):
            for fields, reason, field in cases:
                answer = await client.post(path, json={"text_input": "abc", **fields})
                document = answer.json()
                assert (answer.status_code, document["reason"], document["field"]) == (400, reason, field), fields
                missing = await client.post(path.replace("writer", "nobody"), json={"text_input": "abc", **fields})
                assert (missing.status_code, missing.json()["reason"]) == (404, "NOT_FOUND"), fields


async def test_an_error_behind_the_first_piece_is_the_last_event(start: Start) -> None:
    error = Unavailable("the engine restarts", reason="ENGINE_RESTARTING", retry_after_s=1.0)

    def prepare(engine: FakeEngine) -> None:
        decoder(engine)
        engine.script = lambda _: [Said(tokens_of("ab")), Said(error=error)]

    harness = await start(prepare)
    async with client_of(harness) as client:
        *pieces, last = events_of(await client.post(f"{PATH}_stream", json={"text_input": "abc"}))
        assert "".join(piece["text_output"] for piece in pieces) == "ab"
        assert (last["error"], last["reason"]) == ("the engine restarts", "ENGINE_RESTARTING")
        whole = await client.post(PATH, json={"text_input": "abc"})
        assert (whole.status_code, whole.json()["reason"]) == (503, "ENGINE_RESTARTING")
        assert whole.headers["retry-after"]


async def test_who_leaves_is_generated_for_no_longer(start: Start) -> None:
    harness = await start(holding_decoder)
    engine = harness.engine
    async with client_of(harness) as client:
        for path in (PATH, f"{PATH}_stream"):
            asked = client.build_request("POST", path, json={"text_input": "abc"}, timeout=0.2)
            with pytest.raises(httpx2.ReadTimeout):
                await client.send(asked)
            await harness.until(lambda: not engine.held)
