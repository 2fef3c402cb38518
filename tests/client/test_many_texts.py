"""One text or any number of texts: in calls that a server takes, in order, with errors in the caller's words."""

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix_client import Client, Input, Prediction, Predictions
from adamix_client.bounds import MAX_INPUTS_PER_CALL, MAX_MESSAGE_BYTES
from adamix_client.chunks import Asked, chunked
from adamix_client.errors import (
    AdamixError,
    FailedPrecondition,
    InvalidConfig,
    InvalidData,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from adamix_client.wording import reword
from adamix_protos.v1 import inference_pb2
from adamix_testing.played_server import PlayedServer, classified


@pytest.fixture(scope="module")
def server() -> Iterator[PlayedServer]:
    with PlayedServer(Predict=classified) as server:
        yield server


@pytest.fixture
def client(server: PlayedServer) -> Iterator[Client]:
    server.asked.clear()
    server.methods["Predict"] = classified
    with Client(server.address, retries=None) as client:
        yield client


def test_one_text_is_one_value(client: Client) -> None:
    answer = client.predict("sst2", "hello")
    assert isinstance(answer, Prediction)
    assert (answer.label, answer.score, answer.error) == ("hello", 1.0, None)


def test_a_list_is_a_list_of_any_length_in_order(client: Client, server: PlayedServer) -> None:
    texts = [f"text {number}" for number in range(1000)]
    answers = client.predict("sst2", texts)
    assert isinstance(answers, list)
    assert [answer.label for answer in answers] == texts
    sizes = [len(call.request.inputs) for call in server.asked]
    assert sorted(sizes) == [1000 % 64, *[64] * 15]
    assert (answers.timing.compute_s, len(answers.timings)) == (8.0, 16)
    assert client.predict("sst2", []) == []
    assert client.predict("sst2", ["a", ("b", "c")])[1].label == "b|c"
    mixed = client.predict([Input("one", text="a"), Input("two", text="b")])
    assert [(answer.task, answer.label) for answer in mixed] == [("one", "a"), ("two", "b")]


def test_several_calls_run_at_a_time_and_no_more(client: Client, server: PlayedServer) -> None:
    together = threading.Barrier(3)

    def wait(request: Any) -> Any:
        together.wait(10)
        return classified(request)

    server.methods["Predict"] = wait
    server.most_running = 0
    assert len(client.predict("sst2", ["a"] * (64 * 6), calls_in_flight=3)) == 64 * 6
    assert server.most_running == 3


def test_an_iterator_is_read_no_further_than_the_calls_that_run(client: Client) -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "a"

    answers = client.predict_iter("sst2", endless(), calls_in_flight=2)
    for _ in range(640):
        next(answers)
        assert read <= 640 + 4 * MAX_INPUTS_PER_CALL
    answers.close()


def test_what_is_left_is_not_waited_for(client: Client, server: PlayedServer) -> None:
    hold, left = threading.Event(), threading.Event()

    def held(request: Any) -> Any:
        if request.inputs[0].text == "late":
            hold.wait(10)
            left.set()
        return classified(request)

    server.methods["Predict"] = held
    texts = [*["soon"] * 64, *["late"] * 64]
    with pytest.raises(InvalidRequest, match="text 1 is empty"):
        client.predict("sst2", [" ", *texts])
    assert not left.is_set()
    hold.set()


def test_errors_are_raised_or_left_in_their_places_with_the_callers_words(client: Client) -> None:
    texts = ["a"] * 200
    texts[130] = " "
    with pytest.raises(InvalidRequest) as raised:
        client.predict("sst2", texts)
    assert (raised.value.message, str(raised.value)) == ("text 131 is empty", "text 131 is empty")
    assert (raised.value.field, raised.value.reason) == ("inputs[130].text", "TEXT_EMPTY")
    answers = client.predict("sst2", texts, on_error="return")
    assert [place for place, answer in enumerate(answers) if answer.error is not None] == [130]
    with pytest.raises(InvalidRequest, match="text 131 is empty"):
        _ = answers[130].label
    with pytest.raises(InvalidRequest, match=r"^the text is empty$"):
        client.predict("sst2", " ")
    with pytest.raises(InvalidRequest, match=r"^input 2 is empty$"):
        client.predict([Input("sst2", text="a"), Input("sst2", text=" ")])
    with pytest.raises(InvalidData, match=r"^input 1 is not a list of 32-bit integers$"):
        client.predict([Input("sst2", token_ids=[1 << 40])])
    with pytest.raises(InvalidData, match=r"^text 1: what is no str is given as task, version or text$"):
        client.predict("sst2", ["a"], version=7)  # type: ignore[call-overload]
    alone = client.predict("sst2", " ", on_error="return")
    assert alone.error is not None
    both = client.predict("sst2", [" ", " "], on_error="return")
    assert [str(answer.error) for answer in both] == [
        "text 1 is empty",
        "text 2 failed as text 1 did: text 1 is empty",
    ]
    assert [answer.error.field for answer in both if answer.error] == ["inputs[0].text", "inputs[1].text"]


def test_a_call_that_fails_leaves_its_error_in_each_of_its_places(client: Client, server: PlayedServer) -> None:
    def some(request: Any) -> Any:
        if request.inputs[0].text == "b":
            raise Unavailable("gone", reason="ENGINE_RESTARTING")
        return classified(request)

    server.methods["Predict"] = some
    texts = [*["a"] * 64, *["b"] * 64, *["c"] * 10]
    answers = client.predict("sst2", texts, on_error="return")
    reasons = [None if answer.error is None else answer.error.reason for answer in answers]
    assert reasons == [*[None] * 64, *["ENGINE_RESTARTING"] * 64, *[None] * 10]
    assert {answer.task for answer in answers} == {"sst2"}
    with pytest.raises(Unavailable):
        client.predict("sst2", texts)

    def unknown(_: Any) -> Any:
        raise NotFound("there is no task nobody", field="inputs[0].task")

    server.methods["Predict"] = unknown
    with pytest.raises(NotFound, match=r"^there is no task nobody$"):
        client.predict("nobody", "a")


def test_what_cannot_be_sent_is_refused_here_and_the_rest_is_asked(client: Client, server: PlayedServer) -> None:
    texts: list[Any] = ["a", "half \ud800", "b", 7, ("a", "b", "c"), "x" * MAX_MESSAGE_BYTES, "c"]
    answers = client.predict("sst2", texts, on_error="return")
    assert [answer.error is None for answer in answers] == [True, False, True, False, False, False, True]
    assert [answer.label for answer in answers if answer.error is None] == ["a", "b", "c"]
    assert str(answers[1].error) == "text 2 is not valid Unicode: it holds half of a surrogate pair"
    assert "text 4" in str(answers[3].error)
    assert "text 6 is larger" in str(answers[5].error)
    assert len(server.asked) == 1
    with pytest.raises(InvalidData, match="text 2"):
        client.predict("sst2", texts)
    assert client.predict("sst2", [7], on_error="return")[0].error is not None  # type: ignore[list-item]
    assert len(server.asked) == 1, "there was nothing to ask"


def test_arguments_that_do_not_go_together() -> None:
    wrong: Any
    with Client("127.0.0.1:1", retries=None) as client:
        for wrong in (
            lambda: client.predict("t"),  # type: ignore[call-overload]
            lambda: client.predict("t", b"bytes"),  # type: ignore[call-overload]
            lambda: client.predict("t", "a", on_error="ignore"),  # type: ignore[call-overload]
            lambda: client.predict([Input("t", text="a")], truncate=True),  # type: ignore[call-overload]
        ):
            with pytest.raises(InvalidConfig):
                wrong()


def test_an_embedding_and_the_wrong_one(client: Client, server: PlayedServer) -> None:
    with pytest.raises(InvalidConfig, match="answers with a Classification, which has no embedding"):
        client.embed("sst2", "a")

    def vectors(request: Any) -> Any:
        found = [inference_pb2.Prediction(task="v", embedding={"values": [1, 2]}) for _ in request.inputs]
        return inference_pb2.PredictResponse(predictions=found)

    server.methods["Predict"] = vectors
    assert client.embed("v", "a") == (1.0, 2.0)
    assert client.embed("v", ["a"] * 65) == [(1.0, 2.0)] * 65
    with pytest.raises(InvalidConfig, match="which has no label"):
        _ = client.predict("v", "a").label


def test_an_answer_that_is_not_one_for_each_is_refused(client: Client, server: PlayedServer) -> None:
    server.methods["Predict"] = lambda _: inference_pb2.PredictResponse()
    with pytest.raises(AdamixError, match="not one prediction for each"):
        client.predict("sst2", ["a", "b"])


def test_a_client_that_is_closed_ends_a_list_even_where_errors_are_left_in_place(server: PlayedServer) -> None:
    def close(request: Any) -> Any:
        client.close()
        return classified(request)

    server.methods["Predict"] = close
    client = Client(server.address)
    with pytest.raises(FailedPrecondition) as closed:
        list(client.predict_iter("sst2", iter(["a"] * 1000), on_error="return"))
    assert closed.value.reason == "CLIENT_CLOSED"


@given(st.lists(st.integers(0, 30) | st.just(-1), max_size=300), st.sampled_from(["raise", "return"]))
@settings(max_examples=60)
def test_chunks_hold_every_input_once_in_order_within_the_limits(sizes: list[int], on_error: Any) -> None:
    """-1 is an input that cannot be sent."""
    if on_error == "raise":
        sizes = [size for size in sizes if size >= 0]
    texts: list[Any] = [None if size < 0 else "x" * (size << 15) for size in sizes]
    asked = Asked(task="t", on_error=on_error)
    seen: list[int] = []
    for chunk in chunked(texts, asked):
        assert 1 <= len(chunk.places) + len(chunk.refused) <= MAX_INPUTS_PER_CALL
        assert chunk.request.ByteSize() <= MAX_MESSAGE_BYTES
        assert chunk.num_bytes >= chunk.request.ByteSize()
        assert [len(item.text) for item in chunk.request.inputs] == [sizes[place] << 15 for place in chunk.places]
        assert all(sizes[place] < 0 for place in chunk.refused)
        seen += sorted([*chunk.places, *chunk.refused])
    assert seen == list(range(len(sizes)))


@pytest.mark.parametrize(
    ("field", "message", "index", "said", "said_field"),
    [
        ("inputs[2].text", "text is empty", 2, "text 3 is empty", "inputs[2].text"),
        ("inputs[2].text", "text is empty", 130, "text 131 is empty", "inputs[130].text"),
        ("inputs[0].text", "text is empty", None, "the text is empty", "inputs[0].text"),
        ("inputs[1].pair.second", "text is over 64 KiB", 1, "the second of text 2 is over 64 KiB", None),
        ("inputs[0]", "inputs[0] has no text, pair or token_ids", 4, "text 5 has no text, pair or token_ids", None),
        ("inputs[0].text", "the tokenizer makes no token", 0, "text 1: the tokenizer makes no token", None),
        ("inputs[3].task", "a task has no capitals", 70, "a task has no capitals", "inputs[70].task"),
        ("inputs", "a call has 1 to 64 inputs", 1, "a call has 1 to 64 inputs", "inputs"),
        (None, "gone", 1, "gone", None),
    ],
)
def test_words(field: str | None, message: str, index: int | None, said: str, said_field: str | None) -> None:
    error = reword(InvalidRequest(message, field=field), index)
    assert (error.message, str(error)) == (said, said)
    if said_field is not None:
        assert error.field == said_field


def test_a_predictions_list_is_a_list() -> None:
    found: Iterable[Prediction] = Predictions([])
    assert found == []
    assert Predictions([]).timing.compute_s == 0
