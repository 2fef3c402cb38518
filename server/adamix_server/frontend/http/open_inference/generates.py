"""`generate` and `generate_stream`: one call of `Generate` each, told whole or in server-sent events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from adamix.errors import AdamixError, Code
from adamix_protos.v1 import inference_pb2
from adamix_server.frontend.http.calls import Calls
from adamix_server.frontend.http.open_inference.errors import to_body
from adamix_server.frontend.http.open_inference.generating import in_the_callers_words, to_answer, to_request
from adamix_server.frontend.http.open_inference.models import Models
from adamix_server.frontend.http.open_inference.names import body_of, named
from adamix_server.frontend.http.reply import Reply
from adamix_server.frontend.http.request import Request
from adamix_server.frontend.http.server_events import CONTENT_TYPE, HEADERS, event

_METHOD = "/adamix.v1.InferenceService/Generate"


class _Generating:
    """One call.

    Attributes:
        model: as the call has it.
        id: that its answers have, as its body says.
    """

    def __init__(self, calls: Calls, models: Models, request: Request, *, is_stream: bool) -> None:
        self._calls = calls
        self._models = models
        self._request = request
        self._is_stream = is_stream
        self.model, self._version = named(request)
        self.id = ""
        self._is_read = False

    async def messages(self) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """Raises as the call does, in the words of the body."""
        many = self._calls.many(self._request, _METHOD, self._read, inference_pb2.GenerateResponse)
        try:
            async with aclosing(many) as messages:
                async for message in messages:
                    yield message
        except AdamixError as error:
            if error.code is Code.INVALID_ARGUMENT or error.reason == "NOT_GENERATIVE":
                # What there is not is said before what is wrong with the rest, which the method looks at first.
                await self._models.check_there(self._request)
            # Until then an error is of the body, and in its words.
            raise (in_the_callers_words(error) if self._is_read else error) from None

    async def _read(self, request: Request) -> inference_pb2.GenerateRequest:
        request.query()
        body = await body_of(request)
        message, self.id = to_request(self.model, self._version, body, is_stream=self._is_stream)
        self._is_read = True
        return message


class Generates:
    """Answers texts by texts."""

    def __init__(self, calls: Calls, models: Models) -> None:
        self._calls = calls
        self._models = models

    async def whole(self, request: Request) -> Reply:
        """Raises as the call does."""
        call = _Generating(self._calls, self._models, request, is_stream=False)
        texts: list[str] = []
        last = inference_pb2.GenerateResponse()
        async with aclosing(call.messages()) as messages:
            async for last in messages:
                texts.append(last.text_delta)
        return Reply(msgspec.json.encode(to_answer(call.model, call.id, "".join(texts), last)))

    async def stream(self, request: Request) -> None:
        """Raises as the call does, before its first message; what ends it later is said in a last event."""
        call = _Generating(self._calls, self._models, request, is_stream=True)
        try:
            async with aclosing(call.messages()) as messages:
                async for message in messages:
                    if not request.has_begun:
                        await request.begin(CONTENT_TYPE, headers=HEADERS)
                    answer = to_answer(call.model, call.id, message.text_delta, message)
                    await request.write(event(msgspec.json.encode(answer)))
        except AdamixError as error:
            if not request.has_begun:
                raise
            await request.write(event(to_body(error)))
