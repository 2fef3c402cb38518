"""A server of texts that are played: a real port, on which each task is answered as the test says."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc

from adamix.errors import AdamixError
from adamix_protos.v1 import inference_pb2, inference_pb2_grpc
from adamix_server.api import status

Request = inference_pb2.GenerateRequest
Response = inference_pb2.GenerateResponse
Answer = Callable[[Request], Iterator[Response]]

VERSION = "ab" * 32


def words(*texts: str, **last: Any) -> Iterator[Response]:
    """A delta for each text, a token each, and the end."""
    for number, text in enumerate(texts):
        yield Response(text_delta=text, token_ids=[number], logprobs=[_logprob(number)], version=VERSION)
    yield end(len(texts), **last)


def end(generated: int, finish: str = "EOS", seed: int = 7, prompt: int = 3) -> Response:
    return Response(
        finish_reason=f"FINISH_REASON_{finish}",
        usage=inference_pb2.Usage(prompt_tokens=prompt, generated_tokens=generated, cached_tokens=1),
        seed=seed,
        version=VERSION,
    )


def _logprob(token_id: int) -> inference_pb2.TokenLogprob:
    other = inference_pb2.TokenLogprob(token_id=token_id + 100, logprob=-2.0)
    return inference_pb2.TokenLogprob(token_id=token_id, logprob=-0.5, alternatives=[other])


def said(request: Request) -> str:
    """What a request asks with, as one text."""
    return request.prompt or " ".join(f"{m.role}={m.content}" for m in request.chat.messages)


class TextServer(inference_pb2_grpc.InferenceServiceServicer):
    """Serves for as long as a with-block runs.

    Attributes:
        answer: what follows a request, which gets ids and probabilities only if it asks for them. An AdamixError that
            it raises, also between deltas, ends the call with it.
        requests: all that came, in their order.
        left: calls that a client left before their end.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.left = threading.Semaphore(0)
        self._server = grpc.server(ThreadPoolExecutor(32))
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()

    def Generate(self, request: Request, context: Any) -> Iterator[Response]:
        self.requests.append(request)
        is_over = False

        def note() -> None:
            if not is_over:
                self.left.release()

        context.add_callback(note)
        try:
            for response in self.answer(request):
                if not request.return_token_ids:
                    response.ClearField("token_ids")
                if not request.logprobs:
                    response.ClearField("logprobs")
                yield response
        except AdamixError as error:
            found = status.to_status(error)
            is_over = True
            context.set_trailing_metadata(status.to_trailers(error, found))
            context.abort(status.grpc_code(error), found.message)
        is_over = True
