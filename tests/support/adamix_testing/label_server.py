"""A server of answers that are played: a real port, on which each input is answered as the test says."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc

from adamix.errors import AdamixError
from adamix_protos.v1 import inference_pb2, inference_pb2_grpc
from adamix_server.api import status

Asked = inference_pb2.PredictInput
Answer = inference_pb2.Prediction

VERSION = "cd" * 32


def label(text: str, score: float = 0.75) -> Answer:
    found = inference_pb2.Classification(label=text, label_id=0, scores=[score, 1 - score])
    return Answer(classification=found)


class LabelServer(inference_pb2_grpc.InferenceServiceServicer):
    """Serves for as long as a with-block runs.

    Attributes:
        answer: to one input. An AdamixError that it raises is that input's; one that `refuse` raises is the call's.
        refuse: called with each request before its inputs are answered.
        asked: all inputs that came, in their order.
        most: calls that were under way at once.
    """

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.answer = answer
        self.refuse: Callable[[inference_pb2.PredictRequest], None] = lambda request: None
        self.asked: list[Asked] = []
        self.calls: list[int] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(80))
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()

    def Predict(self, request: inference_pb2.PredictRequest, context: Any) -> inference_pb2.PredictResponse:
        with self._lock:
            self.calls.append(len(request.inputs))
            self.asked.extend(request.inputs)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            self.refuse(request)
            predictions, errors = [], []
            for item in request.inputs:
                try:
                    found = self.answer(item)
                except AdamixError as error:
                    errors.append(error)
                    found = Answer(error=status.to_status(error))
                found.task, found.version = item.task, VERSION
                predictions.append(found)
            if len(errors) == len(predictions) and len({(error.code, error.reason) for error in errors}) == 1:
                raise errors[0]
        except AdamixError as error:
            context.set_trailing_metadata(status.to_trailers(error, status.to_status(error)))
            context.abort(status.grpc_code(error), error.message)
        finally:
            with self._lock:
                self._now -= 1
        return inference_pb2.PredictResponse(predictions=predictions)
