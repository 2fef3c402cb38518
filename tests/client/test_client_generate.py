"""The typed client's texts: what is asked, what comes of it, and an end for every way to leave it."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from adamix.errors import AdamixError, DeadlineExceeded, InvalidConfig, Overloaded, Unavailable
from adamix_client import ChatMessage, Client, GenerateDelta, GeneratedText, TokenLogprob, TokenUsage
from adamix_protos.v1 import inference_pb2
from adamix_testing.text_server import VERSION, Answer, Request, Response, TextServer, end, words

Start = Callable[[Answer], tuple[TextServer, Client]]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def started(answer: Answer) -> tuple[TextServer, Client]:
            server = stack.enter_context(TextServer(answer))
            return server, stack.enter_context(Client(server.address))

        yield started


def test_a_text_comes_in_deltas_and_the_last_has_its_end(start: Start) -> None:
    server, client = start(lambda _: words("It ", "is ", "late."))
    deltas = list(client.generate("poet", "The hour", logprobs=1, return_token_ids=True))
    assert [delta.text for delta in deltas] == ["It ", "is ", "late.", ""]
    assert deltas[0] == GenerateDelta(
        "It ", (0,), (TokenLogprob(0, -0.5, (TokenLogprob(100, -2.0),)),), version=VERSION
    )
    assert deltas[-1] == GenerateDelta("", finish_reason="eos", usage=TokenUsage(3, 3, 1), seed=7, version=VERSION)
    assert server.requests == [Request(task="poet", prompt="The hour", logprobs=1, return_token_ids=True)]


def test_all_that_a_text_can_be_asked_with_is_sent_and_what_is_not_given_is_left_to_the_server(start: Start) -> None:
    server, client = start(lambda _: words())
    sampling: dict[str, Any] = {
        "temperature": 0.5,
        "top_k": 0,
        "top_p": 0.25,
        "min_p": 0.125,
        "repetition_penalty": 2.0,
        "presence_penalty": -1.0,
        "frequency_penalty": 1.0,
        "no_repeat_ngram_size": 4,
        "seed": 2**64 - 1,
        "length_penalty": 0.5,
        "renormalize": True,
    }
    assert set(sampling) == {field.name for field in inference_pb2.Sampling.DESCRIPTOR.fields}
    others: dict[str, Any] = {
        "version": VERSION,
        "max_new_tokens": 5,
        "num_beams": 2,
        "stop": ["\n", "end"],
        "stop_token_ids": [3, 4],
        "ignore_eos": True,
        "logprobs": 20,
        "return_token_ids": True,
    }
    chat = [ChatMessage("user", "Hi"), {"role": "assistant", "content": ""}]
    list(client.generate("poet", chat=chat, **sampling, **others))
    list(client.generate("poet", token_ids=np.asarray([1, 2])))
    asked, bare = server.requests
    assert asked.sampling == inference_pb2.Sampling(**sampling)
    assert [(m.role, m.content) for m in asked.chat.messages] == [("user", "Hi"), ("assistant", "")]
    assert {name: _plain(getattr(asked, name)) for name in others} == others
    assert bare == Request(task="poet", token_ids=inference_pb2.TokenIds(ids=[1, 2]))


def _plain(value: Any) -> Any:
    return list(value) if hasattr(value, "extend") else value


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({}, None),
        ({"prompt": "a", "token_ids": [1]}, None),
        ({"prompt": "half of a pair: \ud800"}, "prompt"),
        ({"chat": [{"role": "user"}]}, "chat"),
        ({"chat": [{"role": "user", "content": 5}]}, "content"),
        ({"token_ids": [2**31]}, "ids"),
        ({"token_ids": ["a"]}, "ids"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "seed": 2**64}, "seed"),
        ({"prompt": "a", "top_k": 0.5}, "top_k"),
        ({"prompt": "a", "max_new_tokens": 2**31}, "max_new_tokens"),
        ({"prompt": "a", "stop": [b"\xff"]}, "stop"),
    ],
)
def test_what_cannot_be_sent_is_said_before_a_call(arguments: dict[str, Any], field: str | None, start: Start) -> None:
    server, client = start(lambda _: words())
    with pytest.raises(InvalidConfig) as refused:
        client.generate("poet", **arguments)
    assert refused.value.field == field
    assert server.requests == []


def test_one_text_to_stop_at_is_not_the_list_of_its_letters(start: Start) -> None:
    server, client = start(lambda _: words())
    list(client.generate("poet", "a", stop="end"))
    assert list(server.requests[0].stop) == ["end"]


def test_what_came_before_an_error_stays_and_nothing_is_asked_again(start: Start) -> None:
    def dies(_: Request) -> Iterator[Response]:
        yield Response(text_delta="half ")
        raise Unavailable("the engine is being started again", reason="ENGINE_RESTARTING", retry_after_s=1.0)

    server, client = start(dies)
    deltas = client.generate("poet", "a")
    assert next(deltas).text == "half "
    with pytest.raises(Unavailable) as lost:
        next(deltas)
    assert (lost.value.reason, lost.value.retry_after_s is not None) == ("ENGINE_RESTARTING", True)
    assert len(server.requests) == 1


def test_leaving_the_iterator_ends_the_call(start: Start) -> None:
    def endless(_: Request) -> Iterator[Response]:
        for number in itertools.count():
            yield Response(text_delta=f"{number} ")
            time.sleep(0.001)

    server, client = start(endless)
    deltas = client.generate("poet", "a")
    assert next(deltas).text == "0 "
    deltas.close()
    assert server.left.acquire(timeout=10)
    for delta in client.generate("poet", "a"):
        if delta.text == "3 ":
            break
    del delta
    assert server.left.acquire(timeout=10)


def test_a_deadline_is_for_the_whole_text(start: Start) -> None:
    def slow(_: Request) -> Iterator[Response]:
        yield Response(text_delta="a")
        time.sleep(1.0)
        yield end(1)

    _, client = start(slow)
    deltas = client.generate("poet", "a", timeout_s=0.3)
    assert next(deltas).text == "a"
    with pytest.raises(DeadlineExceeded):
        next(deltas)


def test_a_refusal_before_the_first_delta_is_as_of_other_calls(start: Start) -> None:
    def full(_: Request) -> Iterator[Response]:
        raise Overloaded("the queue is full", reason="TENANT_QUEUE_FULL", retry_after_s=2.0)
        yield

    server, client = start(full)
    with pytest.raises(Overloaded) as refused:
        next(client.generate("poet", "a", timeout_s=1.0))
    assert (refused.value.reason, refused.value.retry_after_s is not None) == ("TENANT_QUEUE_FULL", True)
    assert len(server.requests) == 1, "nobody waits longer than the caller would"


def test_it_is_asked_for_again_until_the_first_delta_and_never_after(start: Start) -> None:
    def answer(_: Request) -> Iterator[Response]:
        if len(server.requests) < 3:
            raise Unavailable("starting", reason="ENGINE_RESTARTING", retry_after_s=0.01)
        yield Response(text_delta="It ")
        raise Unavailable("restarting", reason="ENGINE_RESTARTING", retry_after_s=0.01)

    server, client = start(answer)
    deltas = client.generate("poet", "a")
    assert next(deltas).text == "It "
    with pytest.raises(Unavailable) as broken_off:
        next(deltas)
    assert broken_off.value.reason == "ENGINE_RESTARTING"
    assert len(server.requests) == 3


def test_a_whole_text(start: Start) -> None:
    _, client = start(lambda _: words("It ", "is."))
    text = GeneratedText.of(client.generate("poet", "a", logprobs=1, return_token_ids=True))
    assert text.document == {
        "text": "It is.",
        "finish_reason": "eos",
        "usage": {"prompt_tokens": 3, "generated_tokens": 2, "cached_tokens": 1},
        "version": VERSION,
        "seed": 7,
        "token_ids": [0, 1],
        "logprobs": [
            {"token_id": i, "logprob": -0.5, "alternatives": [{"token_id": 100 + i, "logprob": -2.0}]} for i in (0, 1)
        ],
    }
    with pytest.raises(AdamixError, match="no end"):
        GeneratedText.of([GenerateDelta("cut off")])
