"""The load generator's process against a server of the test: who is sent as what, and what is said of each call."""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from adamix.errors import DeadlineExceeded, Overloaded
from adamix_bench.tenants.load import Due, Group, LoadProcess, Plan
from adamix_protos.v1 import inference_pb2, inference_pb2_grpc
from adamix_server.api import status


class Answers(inference_pb2_grpc.InferenceServiceServicer):
    """Answers by the first text: some texts ask for what goes wrong."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.released = threading.Event()

    def Predict(self, request: Any, context: Any) -> Any:
        text = request.inputs[0].text
        self.asked[text] += 1
        self.keys.update(value for name, value in context.invocation_metadata() if name == "authorization")
        if text == "full":
            abort(context, Overloaded("full", reason="TENANT_QUEUE_FULL", retry_after_s=30.0))
        if text == "full once" and self.asked[text] == 1:
            abort(context, Overloaded("full", reason="TENANT_QUEUE_FULL", retry_after_s=0.05))
        if text == "late":
            abort(context, DeadlineExceeded("late", reason="DEADLINE_UNREACHABLE", retry_after_s=0.05))
        if text == "broken":
            context.abort(grpc.StatusCode.UNAVAILABLE, "no server here")
        if text == "slow":
            self.released.wait(20)
        response = inference_pb2.PredictResponse()
        response.timing.batch_tokens, response.timing.compute_s = 100, 0.5
        for item in request.inputs:
            prediction = response.predictions.add(task="t")
            if item.text == "expired":
                prediction.error.CopyFrom(status.to_status(DeadlineExceeded("too late")))
            else:
                prediction.classification.label = "x"
        return response


def abort(context: Any, error: Any) -> None:
    found = status.to_status(error)
    context.set_trailing_metadata(status.to_trailers(error, found))
    context.abort(status.grpc_code(error), error.message)


@pytest.fixture
def served() -> Iterator[tuple[Answers, str]]:
    answers = Answers()
    server = grpc.server(futures.ThreadPoolExecutor(8))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(answers, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield answers, f"127.0.0.1:{port}"
    answers.released.set()
    server.stop(0).wait()


def payload(*texts: str) -> bytes:
    inputs = [inference_pb2.PredictInput(task="t", text=text) for text in texts]
    return inference_pb2.PredictRequest(inputs=inputs).SerializeToString()


TEXTS = ["fine", "full", "late", "broken", "slow", "full once"]


def test_every_call_is_accounted_for_by_what_became_of_it(served: tuple[Answers, str]) -> None:
    answers, address = served
    payloads = [*map(payload, TEXTS), payload("fine", "expired")]
    lengths = [[10], [10], [10], [10], [10], [10], [3, 4]]
    group = Group(tenant="a", key="secret", payloads=payloads, lengths=lengths)
    calls = [Due(0.01 * number, 0, number, 10.0, TEXTS[number:][:1] == ["full once"]) for number in range(7)]
    # One that its deadline ends, beside the one that is given up.
    calls.append(Due(0.1, 0, 4, 0.2))
    with LoadProcess() as load:
        found = load.run(Plan(address=address, groups=[group], calls=calls, seconds=0.5, cut_s=1.0))
    ended = Counter((call.outcome, call.reason, call.answered) for call in found.calls)
    assert ended == {
        ("ok", "", 10): 2,
        ("refused", "TENANT_QUEUE_FULL", 0): 2,
        ("refused", "DEADLINE_UNREACHABLE", 0): 1,
        ("failed", "UNAVAILABLE no server here", 0): 1,
        ("expired", "DEADLINE_EXCEEDED", 3): 1,
        ("expired", "", 0): 1,
    }
    assert answers.keys == {"Bearer secret"}
    assert found.batches == [(100, 0.5)]
    assert (answers.asked["full"], answers.asked["full once"]) == (1, 2)
    again = max(call.due_s for call in found.calls if call.outcome == "ok")
    # RetryInfo is up to a fifth shorter than the 0.05 s.
    assert 0.05 + 0.039 <= again < 1.5
    assert found.most_late_s >= found.late_s >= 0
