"""A front end of a decoder, whose engine says what a test lets it say."""

from collections.abc import Sequence
from typing import Any

import grpc.aio

from adamix_protos.v1 import inference_pb2 as pb
from adamix_testing.byte_tokenizers import FIRST_BYTE
from adamix_testing.fake_engine import Ending, FakeEngine, Said
from adamix_testing.harness import Harness
from adamix_testing.refusals import failure

# Its window, and what its engine keeps: more than one text can have.
WINDOW = 1024
PAGES = 64


def decoder(engine: FakeEngine) -> None:
    """For `prepare`: an engine that generates."""
    engine.pages = PAGES


def holding_decoder(engine: FakeEngine) -> None:
    """One that says nothing by itself."""
    decoder(engine)
    engine.hold = True


def request(task: str = "writer", **fields: Any) -> pb.GenerateRequest:
    """What asks for a text after `abc`, if `fields` do not say otherwise."""
    if not fields.keys() & {"prompt", "chat", "token_ids"}:
        fields["prompt"] = "abc"
    return pb.GenerateRequest(task=task, **fields)


async def generate(harness: Harness, **fields: Any) -> list[pb.GenerateResponse]:
    """All messages of an answer, which must end OK."""
    return [message async for message in harness.inference.Generate(request(**fields))]


def text_of(messages: Sequence[pb.GenerateResponse]) -> str:
    return "".join(message.text_delta for message in messages)


async def until_error(call: Any) -> tuple[list[pb.GenerateResponse], grpc.aio.AioRpcError]:
    """The messages of an answer that must fail, and how it does."""
    messages: list[pb.GenerateResponse] = []

    async def read_all() -> None:
        while True:
            messages.append(await next_message(call))

    return messages, await failure(read_all())


async def next_message(call: Any) -> pb.GenerateResponse:
    message = await call.read()
    assert isinstance(message, pb.GenerateResponse), "the answer has ended"
    return message


async def rest_of(call: Any) -> list[pb.GenerateResponse]:
    """The messages up to the end of an answer, which must be OK."""
    messages: list[pb.GenerateResponse] = []
    while isinstance(message := await call.read(), pb.GenerateResponse):
        messages.append(message)
    assert await call.code() is grpc.StatusCode.OK
    return messages


def tokens_of(text: str) -> list[int]:
    """A text in tokens of one byte each."""
    return [FIRST_BYTE + byte for byte in text.encode()]


def saying(text: str, finish: Ending = "eos") -> Any:
    """For `prepare`: an engine that says a text byte by byte, whatever it is asked."""

    def prepare(engine: FakeEngine) -> None:
        decoder(engine)
        engine.script = lambda _: [*(Said([token]) for token in tokens_of(text)), Said(finish=finish)]

    return prepare


async def ask(harness: Harness, **fields: Any) -> Any:
    """A call, and the row that the engine got of it."""
    call = harness.inference.Generate(request(**fields))
    await harness.until(lambda: len(harness.engine.held) == 1)
    return call, harness.engine.held[0]
