"""Embeddings and classes over a real front end, with OpenAI's client and with plain requests."""

import base64
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from adamix.errors import Overloaded, Unavailable
from adamix_server.frontend.http.open_ai import answer_room
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL
from adamix_testing.harness import Harness
from adamix_testing.stock_clients import open_ai

WIDTH = 8


async def post(predicting: Harness, path: str, **body: Any) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=f"http://{predicting.http}", verify=False) as client:
        return await client.post(path, json=body)


async def test_embeddings_of_one_text(predicting: Harness) -> None:
    async with open_ai(predicting) as client:
        # Which asks for base64, and reads it.
        answer = await client.embeddings.create(model="vector", input="w1 w2")
        plain = await client.embeddings.create(model="vector", input="w1 w2", encoding_format="float")
    # [CLS] w1 w2 [SEP]
    assert answer.data[0].embedding == plain.data[0].embedding == [4.0 * index for index in range(WIDTH)]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (4, 4)
    assert (answer.object, answer.model, answer.data[0].object) == ("list", "vector", "embedding")


async def test_embeddings_of_more_texts_than_a_call_has(predicting: Harness) -> None:
    texts = [" ".join(["w1"] * (1 + number % 7)) for number in range(2 * MAX_INPUTS_PER_CALL + 3)]
    async with open_ai(predicting) as client:
        answer = await client.embeddings.create(model="vector", input=texts)
    lengths = [3 + number % 7 for number in range(len(texts))]
    assert [item.index for item in answer.data] == list(range(len(texts)))
    assert [item.embedding[1] for item in answer.data] == lengths
    assert answer.usage.total_tokens == sum(lengths)


async def test_the_bytes_of_an_embedding(predicting: Harness) -> None:
    answer = await post(predicting, "/v1/embeddings", model="vector", input=[[5, 6, 7]], encoding_format="base64")
    raw = base64.b64decode(answer.json()["data"][0]["embedding"])
    assert np.frombuffer(raw, "<f4").tolist() == [3.0 * index for index in range(WIDTH)]


async def test_a_text_that_fails_is_named_as_its_caller_knows_it(predicting: Harness) -> None:
    texts = ["w1"] * (MAX_INPUTS_PER_CALL + 5)
    texts[MAX_INPUTS_PER_CALL + 2] = "w1 " * 30
    answer = await post(predicting, "/v1/embeddings", model="vector", input=texts)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "input[66]")
    assert "inputs[" not in error["message"]
    answer = await post(predicting, "/v1/embeddings", model="vector", input="w1 " * 30)
    assert answer.json()["error"]["param"] == "input"
    answer = await post(predicting, "/v1/embeddings", model="vector", input="w1 " * 30, truncate_prompt_tokens=-1)
    assert answer.json()["usage"]["total_tokens"] == 16


async def test_the_first_failure_ends_the_calls(predicting: Harness) -> None:
    predicting.engine.fail = lambda row: Unavailable("gone", reason="ENGINE_RESTARTING", retry_after_s=0.5)
    answer = await post(predicting, "/v1/embeddings", model="vector", input=["w1"] * (3 * MAX_INPUTS_PER_CALL))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_restarting")
    assert answer.headers["retry-after"] == "1"
    assert sum(len(frame.rows) for frame in predicting.engine.submits) == MAX_INPUTS_PER_CALL


async def test_an_answer_that_would_be_too_large(predicting: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_room, "MAX_ANSWER_BYTES", 3 * WIDTH * answer_room.VALUE_BYTES)
    assert (await post(predicting, "/v1/embeddings", model="vector", input=["w1"] * 3)).status_code == 200
    answer = await post(predicting, "/v1/embeddings", model="vector", input=["w1"] * 4)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "answer_too_large", "input")


async def test_room_is_given_back_when_an_answer_was_read_or_failed(
    predicting: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"model": "vector", "input": ["w1"] * 3}
    sizes: list[int] = []
    take = answer_room.AnswerRoom.take

    def taken(self: answer_room.AnswerRoom, *args: Any) -> Any:
        sizes.append(self._held.total())
        return take(self, *args)

    monkeypatch.setattr(answer_room.AnswerRoom, "take", taken)
    for error in (None, Overloaded("full"), None):
        predicting.engine.fail = lambda _, error=error: error
        await post(predicting, "/v1/embeddings", **fields)
    assert sizes == [0, 0, 0]


async def test_texts_that_wait_for_their_call_take_room(predicting: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_room, "MAX_ANSWER_BYTES", 1 << 30)
    text = "w1 w2 w3"
    one = len(text) + len("tenants/default/tasks/vector")
    room = [0]
    take = answer_room.AnswerRoom.take

    def taken(self: answer_room.AnswerRoom, *args: Any) -> Any:
        give = take(self, *args)
        room[0] = self._held.total()
        return give

    monkeypatch.setattr(answer_room.AnswerRoom, "take", taken)
    for count, waiting in ((MAX_INPUTS_PER_CALL, 0), (MAX_INPUTS_PER_CALL + 3, 3)):
        answer = await post(predicting, "/v1/embeddings", model="vector", input=[text] * count)
        assert answer.status_code == 200
        beside = room[0] - count * WIDTH * answer_room.VALUE_BYTES
        # With what names their parts.
        assert waiting * one <= beside <= 2 * waiting * one


@pytest.mark.parametrize("dimensions", [WIDTH, WIDTH + 1])
async def test_an_embedding_has_the_dimensions_that_it_has(predicting: Harness, dimensions: int) -> None:
    async with open_ai(predicting) as client:
        asked = client.embeddings.create(model="vector", input="w1", dimensions=dimensions)
        if dimensions == WIDTH:
            assert len((await asked).data[0].embedding) == WIDTH
            return
        with pytest.raises(openai.BadRequestError) as caught:
            await asked
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "dimensions")


@pytest.mark.parametrize(
    ("path", "model", "other"),
    [
        ("/v1/embeddings", "intent", {"input": "w1"}),
        ("/classify", "vector", {"input": "w1"}),
        ("/classify", "stars", {"input": "w1"}),
        ("/v1/completions", "intent", {"prompt": "w1"}),
        ("/v1/chat/completions", "vector", {"messages": [{"role": "user", "content": "w1"}]}),
    ],
)
async def test_a_model_of_another_kind(predicting: Harness, path: str, model: str, other: dict[str, Any]) -> None:
    answer = await post(predicting, path, model=model, **other)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "wrong_head", "model")
    assert model in error["message"]


async def test_classes(predicting: Harness) -> None:
    answer = (await post(predicting, "/classify", model="intent", input=["w1", "w2 w3"])).json()
    assert answer["id"].startswith("classify-")
    assert (answer["object"], answer["model"], answer["usage"]["total_tokens"]) == ("list", "intent", 7)
    assert [item["index"] for item in answer["data"]] == [0, 1]
    for item in answer["data"]:
        assert (item["label"], item["num_classes"]) == ("yes", 3)
        assert sum(item["probs"]) == pytest.approx(1.0)


async def test_of_labels_that_may_hold_together_the_likeliest(predicting: Harness) -> None:
    (item,) = (await post(predicting, "/classify", model="tags", input="w1")).json()["data"]
    assert (item["label"], item["num_classes"]) == ("LABEL_3", 4)
    assert item["probs"] == sorted(item["probs"])
    assert sum(item["probs"]) > 1


async def test_an_engine_that_has_no_room_is_a_rate_limit(predicting: Harness) -> None:
    predicting.engine.fail = lambda _: Overloaded("full", retry_after_s=0.2)
    async with open_ai(predicting) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.embeddings.create(model="vector", input="w1")
    assert caught.value.code == "overloaded"
    assert 0 < int(caught.value.response.headers["retry-after-ms"]) < 1000


async def test_who_may_try_again_does(predicting: Harness) -> None:
    failures = [Overloaded("full", retry_after_s=0.01)]
    predicting.engine.fail = lambda _: failures.pop() if failures else None
    async with open_ai(predicting, retries=1) as client:
        assert len((await client.embeddings.create(model="vector", input="w1")).data) == 1
