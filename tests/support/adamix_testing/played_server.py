"""A server whose methods are played: a real port, on which each is answered as the test says.

What was asked is kept. Errors that a method raises reach the client as those of a real server do.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf import message_factory

from adamix.errors import AdamixError, InvalidRequest
from adamix_protos.v1 import adapters_pb2, admin_pb2, inference_pb2, server_pb2
from adamix_server.api import status

# Takes the request (of an upload or a stream an iterator of them); gives the response, or an iterator of them.
Play = Callable[[Any], Any]

_METHODS = {
    f"/{service.full_name}/{method.name}": method
    for file in (adapters_pb2, admin_pb2, inference_pb2, server_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
VERSION = "ab" * 32


@dataclass(frozen=True)
class Asked:
    """One call. `request` is None where there were several."""

    method: str
    request: Any
    metadata: dict[str, str]
    left_s: float | None


class PlayedServer(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs alone
    """Serves for as long as a with-block runs.

    Args:
        methods: by the names of their RPCs.

    Attributes:
        asked: all calls, in their order.
        trailers: of calls that are answered.
        running, most_running: calls at a time.
    """

    def __init__(self, **methods: Play) -> None:
        self.methods = methods
        self.asked: list[Asked] = []
        self.trailers: tuple[tuple[str, str], ...] = ()
        self.running = self.most_running = 0
        self._lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(32))
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()

    def count(self, method: str) -> int:
        return sum(call.method == method for call in self.asked)

    def service(self, details: Any) -> Any:
        found = _METHODS.get(details.method)
        if found is None or found.name not in self.methods:
            return None
        kind = f"{'stream' if found.client_streaming else 'unary'}_{'stream' if found.server_streaming else 'unary'}"

        def behave(request: Any, context: Any) -> Any:
            return self._behave(found, request, context)

        def stream(request: Any, context: Any) -> Iterator[Any]:
            yield from self._behave(found, request, context)

        return getattr(grpc, f"{kind}_rpc_method_handler")(
            stream if found.server_streaming else behave,
            request_deserializer=message_factory.GetMessageClass(found.input_type).FromString,
            response_serializer=message_factory.GetMessageClass(found.output_type).SerializeToString,
        )

    def _behave(self, method: Any, request: Any, context: Any) -> Any:
        shown = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        one = None if method.client_streaming else request
        with self._lock:
            self.asked.append(Asked(method.name, one, shown, context.time_remaining()))
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            context.set_trailing_metadata(self.trailers)
            answer = self.methods[method.name](request)
            return self._several(answer, context) if method.server_streaming else answer
        except AdamixError as error:
            self._refuse(error, context)
        finally:
            with self._lock:
                self.running -= 1

    def _several(self, answers: Iterator[Any], context: Any) -> Iterator[Any]:
        try:
            yield from answers
        except AdamixError as error:
            self._refuse(error, context)

    def _refuse(self, error: AdamixError, context: Any) -> None:
        found = status.to_status(error)
        context.set_trailing_metadata(status.to_trailers(error, found))
        context.abort(status.grpc_code(error), found.message)


def classified(request: inference_pb2.PredictRequest) -> inference_pb2.PredictResponse:
    """`Predict` of a task that answers a text with itself; a blank one fails, all of them fail the call."""
    response = inference_pb2.PredictResponse(timing=inference_pb2.Timing(compute_s=0.5, batch_requests=1))
    for index, item in enumerate(request.inputs):
        prediction = response.predictions.add(task=item.task, version=VERSION)
        if item.text.isspace() or (item.WhichOneof("content") == "text" and not item.text):
            error = InvalidRequest("text is empty", reason="TEXT_EMPTY", field=f"inputs[{index}].text")
            prediction.error.CopyFrom(status.to_status(error))
        else:
            label = item.text or "|".join((item.pair.first, item.pair.second))
            prediction.classification.label = label
            prediction.classification.scores.append(1.0)
    if all(prediction.HasField("error") for prediction in response.predictions):
        raise InvalidRequest("text is empty", reason="TEXT_EMPTY", field="inputs[0].text")
    return response
