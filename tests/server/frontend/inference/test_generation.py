"""Generate over a real channel, with the engine played: what is told, how it ends, and what ends it."""

from adamix_protos.v1 import inference_pb2 as pb
from adamix_testing.generating import generate, holding_decoder, next_message, request, text_of
from adamix_testing.harness import StartServing


async def test_a_text_is_told_as_it_comes(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=holding_decoder)
    call = harness.inference.Generate(request(max_new_tokens=5))
    await harness.until(lambda: len(harness.engine.held) == 1)
    (row,) = harness.engine.held
    assert row.generate is not None
    said = [row.generate.max_new_tokens]
    for letter in "hello":
        harness.engine.say(row, ord(letter) + 2)
        assert (await next_message(call)).text_delta == letter
    harness.engine.say(row, finish="length")
    last = await next_message(call)
    assert last.finish_reason == pb.FINISH_REASON_LENGTH
    assert (last.usage.prompt_tokens, last.usage.generated_tokens, last.version) == (3, 5, writer)
    assert said == [5]


async def test_the_engine_echoes(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating()
    messages = await generate(harness, prompt="hellö 日本")
    assert text_of(messages) == "hellö 日本"
    assert messages[-1].finish_reason == pb.FINISH_REASON_EOS
