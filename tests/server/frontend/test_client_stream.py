"""The typed client's stream: answers by id, and an end for every way to leave it."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from adamix.errors import InvalidConfig, InvalidRequest
from adamix_server.client import Classification, Client, Input, StreamInput


def in_thread(scenario: Callable[[Client, Any], None]) -> Any:
    async def main(harness: Any) -> None:
        def work() -> None:
            with Client(harness.address, timeout_s=10) as client:
                scenario(client, harness)

        await asyncio.to_thread(work)

    return main


def test_every_input_is_answered_under_its_id(serve: Any, seed: Any, make_adapter: Callable[..., bytes]) -> None:
    digest = seed("sst2", make_adapter())

    def scenario(client: Client, harness: Any) -> None:
        # More than the server takes at once.
        inputs = [StreamInput(str(i), Input("sst2", text="w1"), return_logits=i == 7) for i in range(400)]
        inputs.append(StreamInput("bad", Input("sst2", text=" ")))
        answers = {answer.id: answer for answer in client.predict_stream(inputs)}
        assert set(answers) == {item.id for item in inputs}
        bad = answers.pop("bad").prediction
        assert isinstance(bad.error, InvalidRequest)
        assert bad.error.field == "input.text"
        assert all(isinstance(answer.prediction.result, Classification) for answer in answers.values())
        assert answers["7"].prediction.version == digest
        assert answers["7"].prediction.logits == (0.0, 3.0, 6.0)
        assert answers["7"].timing.compute_s == pytest.approx(0.002)

    serve(in_thread(scenario))


def test_what_the_inputs_raise_comes_after_the_answers(
    serve: Any, seed: Any, make_adapter: Callable[..., bytes]
) -> None:
    seed("sst2", make_adapter())

    def scenario(client: Client, harness: Any) -> None:
        answers = client.predict_stream([StreamInput("good", Input("sst2", text="w1")), StreamInput("bad", Input("x"))])
        assert next(answers).id == "good"
        with pytest.raises(InvalidConfig):
            next(answers)

    serve(in_thread(scenario))


def test_a_stream_may_feed_on_its_answers_and_be_left(
    serve: Any, seed: Any, make_adapter: Callable[..., bytes]
) -> None:
    seed("sst2", make_adapter())

    async def main(harness: Any) -> None:
        import threading

        answered = threading.Semaphore(1)
        left = threading.Event()

        def endless() -> Iterator[StreamInput]:
            number = 0
            while not left.is_set():
                if answered.acquire(timeout=0.05):
                    yield StreamInput(str(number), Input("sst2", text="w1"))
                    number += 1

        def work() -> None:
            with Client(harness.address, timeout_s=10) as client:
                answers = client.predict_stream(endless())
                for expected in range(5):
                    assert next(answers).id == str(expected)
                    harness.engine.hold = expected == 4
                    answered.release()

                while not harness.engine.held:
                    left.wait(0.005)
                answers.close()
                left.set()

        await asyncio.to_thread(work)
        await harness.until(lambda: bool(harness.engine.cancelled))

    serve(main)
