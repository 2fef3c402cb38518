"""`InferenceService`: answers for task ids, input by input.

Thin: the way of an input is `stages.py`, the life of a stream `stream.py`, that of a text `generation.py`. Knows no
device and no file.
"""

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from adamix.errors import AdamixError, FailedPrecondition, InvalidRequest
from adamix_protos.v1 import inference_pb2, inference_pb2_grpc
from adamix_server.frontend import convert
from adamix_server.frontend.boundary import call as calls
from adamix_server.frontend.boundary.admission import Admission
from adamix_server.frontend.inference.generation import Generation
from adamix_server.frontend.inference.stages import Item, Stages
from adamix_server.frontend.inference.stream import PredictStream
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Thin: every decision is made by the part that owns it. Without a `generation` there is an encoder behind it."""

    def __init__(self, stages: Stages, admission: Admission, generation: Generation | None = None) -> None:
        self._stages = stages
        self._admission = admission
        self._generation = generation

    async def Predict(self, request: inference_pb2.PredictRequest, _context: Any) -> inference_pb2.PredictResponse:
        call, stages, start = calls.current(), self._stages, time.monotonic()
        messages = request.inputs
        if not 1 <= len(messages) <= MAX_INPUTS_PER_CALL:
            raise InvalidRequest(
                f"a call has 1 to {MAX_INPUTS_PER_CALL} inputs, not {len(messages)}",
                reason="INPUT_COUNT",
                field="inputs",
            )
        with stages.view.reading():
            items = [
                stages.read(message, f"inputs[{index}]", call.principal, call.deadline)
                for index, message in enumerate(messages)
            ]
            return_logits = request.return_logits
            # As much as all its texts, which the items have.
            del request, messages
            with stages.admit(items, call.tenant) as place:
                before_tokenize = time.monotonic()
                await stages.tokenize(items)
                tokenize_s = time.monotonic() - before_tokenize
                await stages.charge(items, place)
                await stages.infer(items, place)
        response = inference_pb2.PredictResponse()
        if _common_error(items) is None:
            for item in items:
                stages.write(item, response.predictions.add(), call, return_logits=return_logits)
        stages.record(items, call.tenant, time.monotonic() - start)
        call.input_tokens = sum([item.num_tokens for item in items])
        if (error := _common_error(items)) is not None:
            call.resource = items[0].resource
            raise error
        timings = [item.event.timing for item in items if item.event is not None]
        convert.fill_timing(response.timing, timings, tokenize_s)
        return response

    async def PredictStream(
        self, requests: AsyncIterator[inference_pb2.PredictStreamRequest], _context: Any
    ) -> AsyncIterator[inference_pb2.PredictStreamResponse]:
        stream = PredictStream(self._stages, self._admission, calls.current())
        async with aclosing(stream.answers(requests)) as answers:
            async for answer in answers:
                yield answer

    async def Generate(
        self, request: inference_pb2.GenerateRequest, _context: Any
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        if self._generation is None:
            raise FailedPrecondition(
                "this server's backbone is an encoder, which generates no text; call Predict", reason="NOT_GENERATIVE"
            )
        async with aclosing(self._generation.messages(request, calls.current())) as messages:
            # As much as its text.
            del request
            async for message in messages:
                yield message


def _common_error(items: list[Item]) -> AdamixError | None:
    """The first input's error if every input failed with its code and reason."""
    first = items[0].error
    if first is None or any(
        item.error is None or (item.error.code, item.error.reason) != (first.code, first.reason) for item in items
    ):
        return None
    return first
