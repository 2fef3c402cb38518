"""The typed client's stream: answers by id, and an end for every way to leave it."""

import threading
from collections.abc import Iterator

import pytest

from adamix.errors import InvalidConfig, InvalidRequest
from adamix_client import Classification, Client, Input, StreamInput
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.harness import StartServing


async def test_every_input_is_answered_under_its_id(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving()

    def work(client: Client) -> None:
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

    await harness.call(work)


async def test_what_the_inputs_raise_comes_after_the_answers(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()

    def work(client: Client) -> None:
        answers = client.predict_stream([StreamInput("good", Input("sst2", text="w1")), StreamInput("bad", Input("x"))])
        assert next(answers).id == "good"
        with pytest.raises(InvalidConfig):
            next(answers)

    await harness.call(work)


async def test_a_stream_may_feed_on_its_answers_and_be_left(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving()
    answered = threading.Semaphore(1)
    left = threading.Event()

    def endless() -> Iterator[StreamInput]:
        number = 0
        while not left.is_set():
            if answered.acquire(timeout=0.05):
                yield StreamInput(str(number), Input("sst2", text="w1"))
                number += 1

    def work(client: Client) -> None:
        answers = client.predict_stream(endless())
        for expected in range(5):
            assert next(answers).id == str(expected)
            harness.engine.hold = expected == 4
            answered.release()
        while not harness.engine.held:
            left.wait(0.005)
        answers.close()
        left.set()

    await harness.call(work)
    await harness.until(lambda: bool(harness.engine.cancelled))
