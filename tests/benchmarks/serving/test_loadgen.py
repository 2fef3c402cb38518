"""The load generator's process against a server of the test: what is sent when, and what is counted."""

import io
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from adamix.errors import Unavailable
from adamix_bench.serving.generator_process import read_frame, write_frame
from adamix_bench.serving.load import LoadProcess, Outcome, Plan
from adamix_protos.v1 import inference_pb2, inference_pb2_grpc

TIMEOUT_S = 20.0


class Answers(inference_pb2_grpc.InferenceServiceServicer):
    """Answers every input with its own text as the label; some texts ask for what goes wrong.

    Args:
        hold_until: answer nothing before so many calls, or inputs of a stream, are waiting.
    """

    def __init__(self, *, hold_until: int = 1) -> None:
        self.texts: list[str] = []
        self.running = self.most_running = 0
        self._hold_until = hold_until
        self._changed = threading.Condition()
        self._held = True

    def Predict(self, request: Any, context: Any) -> Any:
        with self._changed:
            self.texts += [item.text for item in request.inputs]
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            self._held = self._held and self.running < self._hold_until
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: not self._held, TIMEOUT_S)
            self.running -= 1
        if request.inputs[0].text == "refused":
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        return inference_pb2.PredictResponse(predictions=[prediction(item.text) for item in request.inputs])

    def PredictStream(self, requests: Any, context: Any) -> Iterator[Any]:
        waiting = []
        for request in requests:
            self.texts.append(request.input.text)
            if request.input.text == "refused":
                context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
            waiting.append(request)
            self.most_running = max(self.most_running, len(waiting))
            # The newest first: answers may come in any order.
            while len(waiting) >= self._hold_until or (waiting and not self._held):
                self._held = False
                last = waiting.pop()
                yield inference_pb2.PredictStreamResponse(id=last.id, prediction=prediction(last.input.text))


def prediction(text: str) -> Any:
    found = inference_pb2.Prediction(task="t")
    if text == "unknown":
        found.error.code = grpc.StatusCode.NOT_FOUND.value[0]
    else:
        found.classification.label = text
    return found


def call(*texts: str) -> bytes:
    inputs = [inference_pb2.PredictInput(task="t", text=text) for text in texts]
    return inference_pb2.PredictRequest(inputs=inputs).SerializeToString()


def message(text: str) -> bytes:
    item = inference_pb2.PredictInput(task="t", text=text)
    return inference_pb2.PredictStreamRequest(input=item).SerializeToString()


@pytest.fixture(scope="module")
def load() -> Iterator[LoadProcess]:
    with LoadProcess() as running:
        yield running


Ask = Callable[..., Outcome]


@pytest.fixture
def ask(load: LoadProcess) -> Ask:
    """Carry a plan out against these answers."""

    def carry_out(answers: Answers, **plan: Any) -> Outcome:
        server = grpc.server(futures.ThreadPoolExecutor(16))
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(answers, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            return load.run(Plan(address=f"127.0.0.1:{port}", timeout_s=TIMEOUT_S, **plan))
        finally:
            server.stop(None).wait()

    return carry_out


def labels(outcome: Outcome) -> list[str]:
    responses = [inference_pb2.PredictResponse.FromString(answer) for answer in outcome.answers]
    return [p.classification.label for response in responses for p in response.predictions]


def test_a_closed_loop_sends_everything_once_and_keeps_so_many_in_flight(ask: Ask) -> None:
    answers = Answers(hold_until=3)
    outcome = ask(answers, payloads=[call(str(i)) for i in range(12)], in_flight=3, connections=2, keep_answers=True)
    assert answers.most_running == 3
    assert sorted(answers.texts, key=int) == [str(i) for i in range(12)]
    assert outcome.calls == list(range(12))
    assert labels(outcome) == [str(i) for i in range(12)]
    assert (outcome.answered, outcome.errors) == ([1] * 12, {})
    assert 0 < max(outcome.latency_s) <= outcome.wall_s


def test_a_time_limit_sends_in_circles(ask: Ask) -> None:
    answers = Answers()
    outcome = ask(answers, payloads=[call("a"), call("b")], in_flight=1, seconds=0.3)
    assert len(outcome.calls) > 2
    assert outcome.calls[:4] == [0, 1, 0, 1]
    assert outcome.wall_s >= 0.3


def test_an_open_loop_does_not_wait_for_answers(ask: Ask) -> None:
    # Nothing is answered before all have arrived: a loop that waited would never end.
    answers = Answers(hold_until=6)
    outcome = ask(answers, payloads=[call(str(i)) for i in range(6)], arrivals_s=[0.02 * i for i in range(6)])
    assert answers.most_running == 6
    # The first waited for the last one to be due.
    assert outcome.latency_s[0] >= 0.1
    assert outcome.answered == [1] * 6


def test_open_latency_counts_from_when_the_call_was_due(ask: Ask) -> None:
    # Due five seconds before the generator gets to it: that wait is the caller's, and is not left out.
    outcome = ask(Answers(), payloads=[call("a")], arrivals_s=[-5.0])
    assert outcome.latency_s[0] >= 5.0
    assert outcome.late_s >= 5.0


def test_an_open_loop_sends_its_payloads_in_circles(ask: Ask) -> None:
    outcome = ask(Answers(), payloads=[call("a"), call("b")], arrivals_s=[0.0] * 5)
    assert outcome.calls == [0, 1, 0, 1, 0]


def test_failed_calls_and_failed_inputs_count_by_code(ask: Ask) -> None:
    payloads = [call("a", "unknown", "b"), call("refused", "c"), call("d")]
    outcome = ask(Answers(), payloads=payloads, in_flight=1)
    assert outcome.answered == [2, 0, 1]
    assert outcome.errors == {"NOT_FOUND": 1, "RESOURCE_EXHAUSTED": 2}


def test_a_stream_matches_answers_in_any_order(ask: Ask) -> None:
    answers = Answers(hold_until=4)
    payloads = [message(str(i)) for i in range(12)]
    outcome = ask(answers, rpc="PredictStream", payloads=payloads, in_flight=4, keep_answers=True)
    assert answers.texts == [str(i) for i in range(12)]
    assert answers.most_running == 4
    found = [inference_pb2.PredictStreamResponse.FromString(answer) for answer in outcome.answers]
    assert [response.prediction.classification.label for response in found] == [str(i) for i in range(12)]
    assert outcome.answered == [1] * 12


def test_a_stream_that_breaks_counts_what_was_in_flight(ask: Ask) -> None:
    payloads = [message(text) for text in ("a", "b", "refused", "never sent")]
    outcome = ask(Answers(), rpc="PredictStream", payloads=payloads, in_flight=1)
    assert outcome.answered == [1, 1, 0]
    assert outcome.errors == {"UNAVAILABLE": 1}


def test_a_generator_that_died_is_said_once_and_ends_in_order() -> None:
    """What it could not be told any more must not come up again when its pipes are closed."""
    with LoadProcess() as load:
        load._process.kill()
        load._process.wait(TIMEOUT_S)
        with pytest.raises(Unavailable, match="has died"):
            load.run(Plan(address="127.0.0.1:1", payloads=[call("a")]))


def test_half_a_frame_is_the_end() -> None:
    whole = io.BytesIO()
    write_frame(whole, b"answers")
    assert read_frame(io.BytesIO(whole.getvalue())) == b"answers"
    for length in range(len(whole.getvalue())):
        assert read_frame(io.BytesIO(whole.getvalue()[:length])) is None
