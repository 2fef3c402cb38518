"""Generate over a real channel, with the engine played: what it is asked for, and what is told of its answer."""

import math
import struct
import time

import pytest

from adamix.generation.sampling import GREEDY, Sampling
from adamix_protos.v1 import inference_pb2 as pb
from adamix_server.config import FrontEndSettings
from adamix_server.limits.generation import DEFAULT_NEW_TOKENS, MAX_EVENTS_PER_MESSAGE
from adamix_server.limits.messages import MAX_TIMEOUT_S
from adamix_testing.byte_tokenizers import END_ID
from adamix_testing.fake_engine import Ending, FakeEngine, Said
from adamix_testing.generating import (
    WINDOW,
    ask,
    decoder,
    generate,
    holding_decoder,
    next_message,
    rest_of,
    saying,
    text_of,
    tokens_of,
)
from adamix_testing.harness import StartServing

HARD = "naïve 日本語 🙂👩‍👩‍👧\n\n  x"


async def test_a_text_is_told_as_it_comes(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=holding_decoder)
    call, row = await ask(harness)
    harness.engine.cached_tokens = 2
    for letter in "日x":
        for token in tokens_of(letter):
            harness.engine.say(row, token)
        assert (await next_message(call)).text_delta == letter
    harness.engine.say(row, finish="eos")
    last = await next_message(call)
    assert (last.text_delta, last.finish_reason, last.version) == ("", pb.FINISH_REASON_EOS, writer)
    assert last.usage == pb.Usage(prompt_tokens=3, generated_tokens=4, cached_tokens=2)


async def test_the_version_is_told_first_and_last(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=saying("abcdef"))
    messages = await generate(harness)
    assert {messages[0].version, messages[-1].version} == {writer}


async def test_what_the_engine_is_asked_for(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=holding_decoder)
    sampling = pb.Sampling(
        temperature=0.5,
        top_k=7,
        top_p=0.25,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.75,
        no_repeat_ngram_size=3,
        seed=2**64 - 1,
    )
    began = time.monotonic()
    call, row = await ask(
        harness, max_new_tokens=9, sampling=sampling, stop_token_ids=[5, 6], ignore_eos=True, logprobs=2
    )
    params = row.generate
    assert (row.tenant, row.digest) == ("default", writer)
    assert struct.unpack("<3i", row.token_ids) == tuple(tokens_of("abc"))
    assert params.max_new_tokens == 9
    assert params.sampling == Sampling(
        temperature=0.5,
        top_k=7,
        top_p=0.25,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.75,
        no_repeat_ngram_size=3,
        seed=2**64 - 1,
    )
    assert (params.eos_ids, params.stop_ids, params.ignore_eos, params.logprobs) == ([END_ID], [5, 6], True, 2)
    # It has no deadline of its own.
    assert row.deadline == pytest.approx(began + MAX_TIMEOUT_S, abs=10)
    harness.engine.say(row, finish="stop")
    last = await next_message(call)
    assert (last.seed, last.finish_reason) == (2**64 - 1, pb.FINISH_REASON_STOP)


async def test_what_is_asked_for_by_default(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=holding_decoder)
    call, row = await ask(harness, token_ids=pb.TokenIds(ids=[9] * (WINDOW - 10)))
    assert row.generate.max_new_tokens == 10, "as many as fit"
    harness.engine.say(row, finish="eos")
    await next_message(call)
    call, row = await ask(harness)
    assert row.generate.max_new_tokens == DEFAULT_NEW_TOKENS
    assert row.generate.sampling == GREEDY
    assert (row.generate.ignore_eos, row.generate.logprobs) == (False, None)
    call.cancel()


async def test_a_seed_that_was_drawn_is_told(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=holding_decoder)
    call, row = await ask(harness, sampling=pb.Sampling(temperature=1.0))
    harness.engine.say(row, finish="eos")
    assert (await next_message(call)).seed == row.generate.sampling.seed


@pytest.mark.parametrize(
    ("finish", "told"),
    [
        ("eos", pb.FINISH_REASON_EOS),
        ("stop", pb.FINISH_REASON_STOP),
        ("length", pb.FINISH_REASON_LENGTH),
        ("cancelled", pb.FINISH_REASON_CANCELLED),
    ],
)
async def test_how_it_ends(start_generating: StartServing, writer: str, finish: Ending, told: int) -> None:
    harness = await start_generating(prepare=saying(HARD, finish))
    messages = await generate(harness, stop=["never", "  x!"])
    assert text_of(messages) == HARD
    assert [message.finish_reason for message in messages[:-1]] == [0] * (len(messages) - 1)
    assert (messages[-1].finish_reason, messages[-1].usage.generated_tokens) == (told, len(HARD.encode()))


async def test_a_character_that_never_ends_is_shown_as_none(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=holding_decoder)
    call, row = await ask(harness)
    harness.engine.say(row, *tokens_of("a🙂")[:-1])
    assert (await next_message(call)).text_delta == "a"
    harness.engine.say(row, finish="length")
    assert (await next_message(call)).text_delta == "\N{REPLACEMENT CHARACTER}"


async def test_a_stop_ends_it(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=holding_decoder)
    call, row = await ask(harness, stop=["\n日", "zz"], return_token_ids=True)
    harness.engine.cached_tokens = 3
    said = tokens_of("one\n日")
    harness.engine.say(row, *said[:4])
    first = await next_message(call)
    assert first.text_delta == "one", "what may begin a stop is kept back"
    # A token comes beside those of the stop, and another one before the engine knows.
    harness.engine.say(row, *said[4:], *tokens_of("x"))
    harness.engine.say(row, *tokens_of("y"))
    await harness.until(lambda: harness.engine.cancelled == [row.id])
    messages = [first, *await rest_of(call)]
    last = messages[-1]
    assert text_of(messages) == "one"
    assert [token for message in messages for token in message.token_ids] == said
    assert last.finish_reason == pb.FINISH_REASON_STOP
    assert last.usage == pb.Usage(prompt_tokens=3, generated_tokens=len(said), cached_tokens=3)


async def test_a_stop_at_the_end_asks_for_nothing_more(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=saying("ab", "length"))
    messages = await generate(harness, stop=["b"])
    assert (text_of(messages), messages[-1].finish_reason) == ("a", pb.FINISH_REASON_STOP)
    assert messages[-1].usage.generated_tokens == 2


async def test_a_stop_holds_whatever_becomes_of_the_engine(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=holding_decoder)
    call, row = await ask(harness, stop=["!"], sampling=pb.Sampling(temperature=1.0, seed=7))
    harness.engine.take = lambda _: None  # type: ignore[method-assign] # it does not hear of the end any more
    harness.engine.say(row, *tokens_of("hi!"))
    assert (await next_message(call)).text_delta == "hi"
    harness.kill_engine()
    last = await next_message(call)
    assert (last.finish_reason, last.seed) == (pb.FINISH_REASON_STOP, 7)
    assert last.usage == pb.Usage(prompt_tokens=3, generated_tokens=3)


async def test_ids_and_probabilities_come_with_their_tokens(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=holding_decoder)
    call, row = await ask(harness, logprobs=2, return_token_ids=True, stop=["b"])
    tokens = tokens_of("éab") + tokens_of("c")
    each = [struct.pack("<ififif", token, -0.5, token, -0.5, 7, -math.inf) for token in tokens]
    harness.engine.say(row, tokens[0], logprobs=each[0])
    first = await next_message(call)
    assert (first.text_delta, list(first.token_ids)) == ("", tokens[:1]), "its character comes later"
    harness.engine.say(row, *tokens[1:], logprobs=b"".join(each[1:]))
    second = await next_message(call)
    assert (second.text_delta, list(second.token_ids)) == ("éa", tokens[1:4])
    alternatives = [pb.TokenLogprob(token_id=tokens[3], logprob=-0.5), pb.TokenLogprob(token_id=7, logprob=-math.inf)]
    assert second.logprobs[2] == pb.TokenLogprob(token_id=tokens[3], logprob=-0.5, alternatives=alternatives)
    assert len(second.logprobs) == 3, "none of what came after the stop"
    assert (await next_message(call)).finish_reason == pb.FINISH_REASON_STOP


async def test_nothing_that_was_not_asked_for_is_told(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=saying("abc"))
    for message in await generate(harness):
        assert not message.token_ids
        assert not message.logprobs


async def test_what_a_client_does_not_read_comes_together(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=holding_decoder)
    number = MAX_EVENTS_PER_MESSAGE + 5
    call, row = await ask(harness, max_new_tokens=number, return_token_ids=True)
    for token in tokens_of("x" * number):
        harness.engine.say(row, token)
    harness.engine.say(row, finish="length")
    messages = await rest_of(call)
    assert [len(message.token_ids) for message in messages] == [MAX_EVENTS_PER_MESSAGE, 5]
    assert text_of(messages) == "x" * number


async def test_an_end_token_that_comes_along_is_no_part_of_it(start_generating: StartServing, writer: str) -> None:
    def prepare(engine: FakeEngine) -> None:
        decoder(engine)
        engine.counts_the_end = False
        engine.script = lambda _: [Said(tokens_of("ab")), Said([END_ID], finish="eos")]

    harness = await start_generating(prepare=prepare)
    messages = await generate(harness, return_token_ids=True)
    assert [token for message in messages for token in message.token_ids] == tokens_of("ab")
    assert messages[-1].usage.generated_tokens == 2


async def test_tokens_are_counted(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating(prepare=saying("hello"), settings=FrontEndSettings())
    harness.front_end._meter.drain()
    await generate(harness, stop=["lo"])
    await generate(harness)
    (sums,) = harness.front_end._meter.drain()[0]
    assert (sums.calls, sums.input_tokens, sums.generated_tokens) == (2, 6, 10)
    recorded = {(sample.name, sample.labels): sample.values for sample in harness.front_end._recorder.drain()}
    assert recorded["adamix_tenant_tokens_total", ("default", "generated")] == [10]
    assert recorded["adamix_tenant_tokens_total", ("default", "input")] == [6]
    assert recorded["adamix_task_requests_total", ("default", "writer")] == [2]
    assert sum(recorded["adamix_time_to_first_token_seconds", ()][1:]) == 2
    assert sum(recorded["adamix_inter_token_seconds", ()][1:]) == 8
