"""PredictStream over a real channel: every answer under its id, and every way a stream can end."""

import asyncio
import random
from collections import Counter
from typing import Any

import grpc.aio
import pytest

from adamix.errors import Overloaded
from adamix.files.manifest import HeadSpec
from adamix_protos.v1 import inference_pb2 as pb
from adamix_server.frontend.inference.tokenization import Tokenizer
from adamix_server.limits.messages import MAX_INPUTS_PER_CALL
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.harness import StartServing
from adamix_testing.refusals import details, reason, refusal


def message(id_: str, text: str = "w1", *, task: str = "sst2", **options: Any) -> pb.PredictStreamRequest:
    return pb.PredictStreamRequest(id=id_, input=pb.PredictInput(task=task, text=text), **options)


async def rest_of(stream: Any) -> list[pb.PredictStreamResponse]:
    """Everything up to the end of a stream, which must be OK."""
    answers = []
    while (answer := await stream.read()) is not grpc.aio.EOF:
        answers.append(answer)
    assert await stream.code() is grpc.StatusCode.OK
    return answers


def hold(engine: FakeEngine) -> None:
    engine.hold = True


async def test_answers_come_as_they_are_ready(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    digest = seed("sst2", make_adapter())
    harness = await start_serving(prepare=hold)
    stream = harness.inference.PredictStream()
    for id_ in ("a", "b", "c"):
        await stream.write(message(id_, return_logits=id_ == "b"))
    await harness.until(lambda: len(harness.engine.held) == 3)
    first, second, third = list(harness.engine.held)
    for row, expected in ((second, "b"), (third, "c"), (first, "a")):
        harness.engine.answer([row])
        answer = await stream.read()
        assert answer.id == expected
        assert answer.prediction.version == digest
        assert answer.prediction.task == "sst2"
        assert answer.prediction.classification.label == "yes"
        assert list(answer.prediction.logits) == ([0, 3, 6] if expected == "b" else [])
        assert answer.timing.compute_s == pytest.approx(0.002)
    await stream.done_writing()
    assert await rest_of(stream) == []


async def test_a_half_closed_stream_finishes_what_runs(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving(prepare=hold)
    stream = harness.inference.PredictStream()
    for i in range(5):
        await stream.write(message(str(i)))
    await stream.done_writing()
    await harness.until(lambda: len(harness.engine.held) == 5)
    harness.engine.hold = False
    harness.engine.answer_all()
    assert sorted(answer.id for answer in await rest_of(stream)) == [str(i) for i in range(5)]


async def test_a_bad_input_fails_alone(start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    seed("sst2", make_adapter())
    bad = [
        (message(""), "ID_INVALID", "id"),
        (message("x" * 65), "ID_INVALID", "id"),
        (message("ä" * 33), "ID_INVALID", "id"),
        (message("nan", timeout_s=float("nan")), "TIMEOUT_INVALID", "timeout_s"),
        (message("negative", timeout_s=-1), "TIMEOUT_INVALID", "timeout_s"),
        (message("long", timeout_s=601), "TIMEOUT_INVALID", "timeout_s"),
        (message("endless", timeout_s=float("inf")), "TIMEOUT_INVALID", "timeout_s"),
        (message("empty", " "), "TEXT_EMPTY", "input.text"),
        (message("large", "x" * (65 << 10)), "TEXT_TOO_LARGE", "input.text"),
        (message("tokens", "w1 " * 20), "TEXT_TOO_LONG", "input.text"),
        (message("nobody", task="nobody"), "NOT_FOUND", None),
        (message("name", task="../x"), "ID_INVALID", "input.task"),
        (pb.PredictStreamRequest(id="nothing"), "TASK_MISSING", "input.task"),
    ]
    harness = await start_serving()
    stream = harness.inference.PredictStream()
    for request, expected, field in bad:
        await stream.write(request)
        answer = await stream.read()
        assert answer.prediction.WhichOneof("result") == "error"
        found = details(answer.prediction.error)
        assert found["ErrorInfo"].reason == expected
        if field is not None:
            assert found["BadRequest"].field_violations[0].field == field
        assert len(answer.id.encode()) <= 64
        if expected != "ID_INVALID" or field != "id":
            assert answer.id == request.id
    await stream.write(message("x" * 64, timeout_s=600))
    assert (await stream.read()).prediction.classification.label == "yes"
    stream.cancel()


async def test_a_live_duplicate_fails_and_the_first_goes_on(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving(prepare=hold)
    stream = harness.inference.PredictStream()
    await stream.write(message("a"))
    await harness.until(lambda: len(harness.engine.held) == 1)
    await stream.write(message("a", "w1 w2"))
    answer = await stream.read()
    assert answer.id == "a"
    assert reason(answer.prediction.error) == "ID_IN_USE"
    harness.engine.hold = False
    harness.engine.answer_all()
    assert (await stream.read()).prediction.classification.label == "yes"
    # Answered, so free again.
    await stream.write(message("a"))
    assert (await stream.read()).prediction.classification.label == "yes"
    stream.cancel()


async def test_reading_stops_while_256_inputs_are_unanswered(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving(prepare=hold)

    async def requests() -> Any:
        for i in range(300):
            yield message(str(i))

    stream = harness.inference.PredictStream(requests())
    await harness.until(lambda: len(harness.engine.held) == 256)
    await asyncio.sleep(0.1)  # time in which a server that went on reading would have
    assert len(harness.engine.held) == 256
    harness.engine.answer(harness.engine.held[:1])
    assert (await stream.read()).id == "0"
    await harness.until(lambda: len(harness.engine.submits[-1].rows) > 0 and harness.engine.held[-1].id >= 257)
    harness.engine.hold = False
    harness.engine.answer_all()
    assert sorted(int(answer.id) for answer in await rest_of(stream)) == list(range(1, 300))


async def test_a_reader_that_sleeps_costs_bounded_memory(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    # 4,096 scores and as many logits: 32 KiB each.
    digest = seed("wide", make_adapter(HeadSpec(type="classification", pooling="mean", num_labels=4096)))
    num_inputs = 800
    harness = await start_serving(prepare=lambda engine: engine.widths.update({digest: 4096}))

    async def requests() -> Any:
        for i in range(num_inputs):
            yield message(str(i), task="wide", return_logits=True)

    def computed() -> int:
        return sum(len(submit.rows) for submit in harness.engine.submits)

    stream = harness.inference.PredictStream(requests())
    await harness.until(lambda: computed() >= 200)
    await asyncio.sleep(0.3)  # time in which a server that buffers would have taken the rest
    assert computed() < num_inputs
    assert sorted(int(answer.id) for answer in await rest_of(stream)) == list(range(num_inputs))


async def test_a_timeout_ends_its_input_here_and_in_the_engine(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving(prepare=hold)
    import time

    stream = harness.inference.PredictStream()
    await stream.write(message("patient"))
    await stream.write(message("hasty", timeout_s=0.05))
    answer = await stream.read()
    assert answer.id == "hasty"
    assert answer.prediction.error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    await harness.until(lambda: len(harness.engine.cancelled) == 1)
    rows = [row for submit in harness.engine.submits for row in submit.rows]
    assert harness.engine.cancelled == [rows[1].id]
    assert rows[0].deadline - time.monotonic() == pytest.approx(60, abs=5)
    harness.engine.answer(harness.engine.held[:1])
    assert (await stream.read()).id == "patient"
    stream.cancel()
    # The call's own deadline bounds them all.
    stream = harness.inference.PredictStream(timeout=5)
    await stream.write(message("bounded", timeout_s=500))
    await harness.until(lambda: len(harness.engine.held) == 1)
    assert harness.engine.held[0].deadline - time.monotonic() < 6
    stream.cancel()


async def test_a_client_that_goes_away_is_forgotten_at_once(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving(prepare=hold)
    stream = harness.inference.PredictStream()
    for i in range(20):
        await stream.write(message(str(i)))
    await harness.until(lambda: len(harness.engine.held) == 20)
    ids = [row.id for row in harness.engine.held]
    stream.cancel()
    await harness.until(lambda: sorted(harness.engine.cancelled) == ids)
    found: list[Any] = []

    def counted() -> bool:
        found.extend(sample.labels for sample in harness.front_end._recorder.drain() if any(sample.values))
        return any(labels[:1] == ("adamix.v1.InferenceService/PredictStream",) for labels in found)

    await harness.until(counted)
    assert ("adamix.v1.InferenceService/PredictStream", "CANCELLED") in found


async def test_an_input_holds_what_it_resolved_until_its_answer(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving(prepare=hold)
    from adamix_protos.v1 import adapters_pb2

    def oldest() -> int:
        return int(harness.front_end._agreement.seen.oldest)

    stream = harness.inference.PredictStream()
    await stream.write(message("a"))
    await harness.until(lambda: len(harness.engine.held) == 1)
    before = oldest()
    await harness.adapters.DeleteTask(adapters_pb2.DeleteTaskRequest(task="sst2"))
    assert oldest() == before
    harness.engine.answer_all()
    assert (await stream.read()).prediction.classification.label == "yes"
    assert oldest() > before
    await stream.write(message("b"))
    assert reason((await stream.read()).prediction.error) == "NOT_FOUND"
    stream.cancel()


async def test_an_idle_stream_ends(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed("sst2", make_adapter())
    monkeypatch.setattr("adamix_server.frontend.inference.stream.STREAM_IDLE_S", 0.2)
    harness = await start_serving(prepare=hold)
    stream = harness.inference.PredictStream()
    await stream.write(message("a"))
    await harness.until(lambda: len(harness.engine.held) == 1)
    # With an input under way it is not idle, however long that takes.
    await asyncio.sleep(0.4)
    harness.engine.answer_all()
    assert (await stream.read()).id == "a"
    assert await refusal(stream.read()) == (grpc.StatusCode.DEADLINE_EXCEEDED, "STREAM_IDLE")


async def test_a_drain_answers_what_runs_and_refuses_the_rest(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving(prepare=hold)
    stream, idle = harness.inference.PredictStream(), harness.inference.PredictStream()
    await idle.write(message("warm"))
    await harness.until(lambda: len(harness.engine.held) == 1)
    await stream.write(message("running"))
    await harness.until(lambda: len(harness.engine.held) == 2)
    harness.engine.answer(harness.engine.held[:1])
    assert (await idle.read()).id == "warm"
    harness.drain()
    # The idle one ends by itself: from then on the other one knows as well.
    assert await refusal(idle.read()) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    await stream.write(message("late"))
    late = await stream.read()
    assert late.id == "late"
    found = details(late.prediction.error)
    assert late.prediction.error.code == grpc.StatusCode.UNAVAILABLE.value[0]
    assert found["ErrorInfo"].reason == "DRAINING"
    assert found["RetryInfo"].retry_delay.ToMilliseconds() > 0
    harness.engine.answer_all()
    assert (await stream.read()).prediction.classification.label == "yes"
    assert await refusal(stream.read()) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


async def test_an_engine_that_dies_fails_its_inputs_and_not_the_stream(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving(prepare=hold)
    stream = harness.inference.PredictStream()
    await stream.write(message("a"))
    await harness.until(lambda: len(harness.engine.held) == 1)
    harness.kill_engine()
    answer = await stream.read()
    assert reason(answer.prediction.error) == "ENGINE_RESTARTING"
    await stream.write(message("b"))
    assert reason((await stream.read()).prediction.error) == "ENGINE_RESTARTING"
    harness.engine.hold = False
    harness.start_engine()
    await harness.until(lambda: harness.front_end._link.is_up)
    await stream.write(message("a"))
    assert (await stream.read()).prediction.classification.label == "yes"
    harness.engine.fail = lambda row: Overloaded("no slot is free", reason="NO_SLOT", retry_after_s=0.5)
    await stream.write(message("a"))
    assert reason((await stream.read()).prediction.error) == "NO_SLOT"
    stream.cancel()


async def test_inputs_that_do_not_fit_wait_for_those_before_them(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())

    def prepare(engine: FakeEngine) -> None:
        engine.credit, engine.hold = (2, 1000), True

    harness = await start_serving(prepare=prepare)
    stream = harness.inference.PredictStream()
    for id_ in ("a", "b", "c", "d", "e"):
        await stream.write(message(id_))
    answered = []
    for held in (2, 2, 1):
        await harness.until(lambda held=held: len(harness.engine.held) == held)
        harness.engine.answer_all()
        for _ in range(held):
            answer = await stream.read()
            assert answer.prediction.WhichOneof("result") == "classification"
            answered.append(answer.id)
    assert answered == ["a", "b", "c", "d", "e"]
    stream.cancel()


async def test_so_many_inputs_of_a_stream_wait_for_room_and_the_others_are_not_even_tokenised(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed("sst2", make_adapter())
    texts: list[int] = []
    tokenize = Tokenizer.tokenize

    async def counted(tokenizer: Tokenizer, of_call: Any) -> Any:
        texts.append(len(of_call))
        return await tokenize(tokenizer, of_call)

    monkeypatch.setattr(Tokenizer, "tokenize", counted)

    def prepare(engine: FakeEngine) -> None:
        engine.credit, engine.hold = (1, 1000), True

    harness = await start_serving(prepare=prepare)
    stream = harness.inference.PredictStream()
    await stream.write(message("0"))
    await harness.until(lambda: len(harness.engine.held) == 1)
    for number in range(1, 100):
        await stream.write(message(str(number)))
    await harness.until(lambda: sum(texts) > 1)
    await asyncio.sleep(0.1)
    assert 1 < sum(texts) <= 1 + MAX_INPUTS_PER_CALL
    harness.engine.hold = False
    harness.engine.answer_all()
    assert [(await stream.read()).id for _ in range(100)] == [str(number) for number in range(100)]
    stream.cancel()


async def test_a_stream_may_be_longer_than_what_waits_of_it(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adamix_server.frontend.inference.stream.MAX_MESSAGE_BYTES", 100)
    seed("sst2", make_adapter())
    harness = await start_serving()
    stream = harness.inference.PredictStream()
    for number in range(30):
        await stream.write(message(str(number)))
    assert [(await stream.read()).id for _ in range(30)] == [str(number) for number in range(30)]
    stream.cancel()


async def test_garbage_ends_the_stream_and_frees_what_ran(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    seed("sst2", make_adapter())
    harness = await start_serving(prepare=hold)
    stream = harness.channel.stream_stream("/adamix.v1.InferenceService/PredictStream")()
    await stream.write(message("a").SerializeToString())
    await harness.until(lambda: len(harness.engine.held) == 1)
    (row,) = harness.engine.held
    await stream.write(b"\xff\xff\xff")
    assert await refusal(stream.read()) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    await harness.until(lambda: harness.engine.cancelled == [row.id])


async def test_whatever_happens_every_message_has_one_answer_and_nothing_stays(
    start_serving: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    """Streams with good and bad inputs, duplicate ids, timeouts, refusals; some are given up half-way."""
    seed("sst2", make_adapter())
    choose = random.Random(0)
    credit = (40, 400)
    answered: Counter[str] = Counter()

    def prepare(engine: FakeEngine) -> None:
        engine.credit, engine.hold = credit, True
        engine.fail = lambda row: choose.choice([None, None, Overloaded("no slot is free", reason="NO_SLOT")])

    harness = await start_serving(prepare=prepare)
    engine, link = harness.engine, harness.front_end._link

    async def answering() -> None:
        while True:
            await asyncio.sleep(choose.random() * 0.01)
            engine.answer(choose.sample(engine.held, choose.randrange(len(engine.held) + 1)))

    async def one(*, is_given_up: bool) -> None:
        sent: Counter[str] = Counter()
        came: Counter[str] = Counter()

        async def requests() -> Any:
            for i in range(choose.randrange(1, 50)):
                id_ = str(choose.choice([i, i, i // 2]))
                text = choose.choice(["w1", "w1 " * 10, "w1 " * 30, " ", "w1" * 600])
                sent[id_] += 1
                yield message(id_, text, timeout_s=choose.choice([0, 0, 0.001, 0.02]))
                await asyncio.sleep(choose.choice([0, 0, 0.005]))

        stream = harness.inference.PredictStream(requests())
        if is_given_up:
            asyncio.get_running_loop().call_later(choose.random() * 0.05, stream.cancel)
        try:
            async for answer in stream:
                came[answer.id] += 1
                result = answer.prediction
                answered[reason(result.error) if result.HasField("error") else "OK"] += 1
            assert came == sent
        except asyncio.CancelledError:
            assert is_given_up

    answers = asyncio.create_task(answering())
    for _ in range(3):
        await asyncio.gather(*(one(is_given_up=number % 3 == 0) for number in range(24)))
    answers.cancel()
    engine.answer_all()
    assert link.moving is not None
    room = link.moving.room
    await harness.until(lambda: (room.free_inputs, room.free_tokens) == credit)
    assert (room.inputs, room.tokens) == (0, 0)
    assert link.moving._waiting == link.moving._rows == link.moving._held == {}
    feeding: Any = getattr(link.on_room, "__self__", None)
    assert (feeding._lines, feeding._admitted, feeding._waiting.inputs) == ({}, {}, 0)
    await harness.until(lambda: not harness.front_end._agreement._readings)
    # Whether the queue was ever full depends on the machine's speed; another test asserts what happens then.
    assert answered.keys() >= {"OK", "NO_SLOT", "ID_IN_USE", "TEXT_EMPTY", "TEXT_TOO_LONG", "DEADLINE_EXCEEDED"}
