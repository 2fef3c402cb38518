"""What a Generate is refused for before the engine hears of it, and prompts in each of their forms."""

import struct
from typing import Any

import grpc
import pytest

from adamix.files.manifest import BackboneSpec, HeadSpec, PromptForm
from adamix_protos.v1 import inference_pb2 as pb
from adamix_server.limits.generation import MAX_CHAT_BYTES, MAX_MESSAGES
from adamix_server.limits.messages import MAX_TEXT_BYTES
from adamix_testing.adapters import WRITER, MakeAdapter
from adamix_testing.byte_tokenizers import BEGIN_ID
from adamix_testing.catalogs import Seed
from adamix_testing.fake_engine import FakeEngine
from adamix_testing.generating import PAGES, WINDOW, decoder, generate, request, rest_of, text_of, tokens_of
from adamix_testing.harness import Harness, StartServing
from adamix_testing.refusals import details, failure, reason, status_of

INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


async def refused(harness: Harness, **fields: Any) -> tuple[grpc.StatusCode, str, str]:
    """(code, reason, field) of a call that the engine hears nothing of."""
    before = len(harness.engine.submits)
    error = await failure(rest_of(harness.inference.Generate(request(**fields))))
    assert len(harness.engine.submits) == before
    status = status_of(error)
    bad = details(status).get("BadRequest")
    return error.code(), reason(status), "" if bad is None else bad.field_violations[0].field


def ids(number: int) -> pb.TokenIds:
    return pb.TokenIds(ids=[9] * number)


def chat(*contents: str, role: str = "user") -> pb.Chat:
    return pb.Chat(messages=[pb.ChatMessage(role=role, content=content) for content in contents])


async def test_each_field_is_refused_by_its_name(
    start_generating: StartServing, seed: Seed, make_adapter: MakeAdapter, writer: str
) -> None:
    seed("sst2", make_adapter())
    cloze = HeadSpec(type="cloze", pooling="last", num_labels=2, template="{text} is", verbalizer=(5, 6))
    seed("cloze", make_adapter(cloze, seed=1))
    harness = await start_generating()
    for fields, told, field in (
        ({"sampling": pb.Sampling(top_p=float("nan"))}, "OUT_OF_RANGE", "sampling.top_p"),
        ({"max_new_tokens": WINDOW + 1}, "OUT_OF_RANGE", "max_new_tokens"),
        ({"stop": ["a", ""]}, "STOP_INVALID", "stop[1]"),
        ({"prompt": ""}, "TEXT_EMPTY", "prompt"),
        ({"prompt": " \n"}, "TEXT_EMPTY", "prompt"),
        ({"prompt": "x" * (MAX_TEXT_BYTES + 1)}, "TEXT_TOO_LARGE", "prompt"),
        ({"token_ids": pb.TokenIds()}, "TEXT_EMPTY", "token_ids"),
        ({"token_ids": pb.TokenIds(ids=[1, -1])}, "TOKEN_ID_OUT_OF_RANGE", "token_ids"),
        ({"token_ids": pb.TokenIds(ids=[1, 300])}, "TOKEN_ID_OUT_OF_RANGE", "token_ids"),
        ({"chat": pb.Chat()}, "CHAT_INVALID", "chat.messages"),
        ({"chat": chat("x", role="")}, "CHAT_INVALID", "chat.messages[0].role"),
        ({"task": ""}, "TASK_MISSING", "task"),
        ({"task": "../x"}, "ID_INVALID", "task"),
        ({"version": "latest"}, "DIGEST_INVALID", "version"),
    ):
        assert await refused(harness, **fields) == (INVALID, told, field), fields
    nothing = await failure(rest_of(harness.inference.Generate(pb.GenerateRequest(task="writer"))))
    assert reason(status_of(nothing)) == "TEXT_EMPTY"
    assert await refused(harness, task="sst2") == (PRECONDITION, "WRONG_HEAD", "")
    assert await refused(harness, task="cloze") == (PRECONDITION, "WRONG_HEAD", "")
    assert await refused(harness, num_beams=2) == (PRECONDITION, "BEAMS_NOT_SERVED", "")
    assert await refused(harness, chat=chat("x")) == (PRECONDITION, "NO_CHAT_TEMPLATE", "")
    assert await refused(harness, task="nobody") == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND", "")
    missing = await failure(rest_of(harness.inference.Generate(request(task="nobody"))))
    assert details(status_of(missing))["ResourceInfo"].resource_name == "tenants/default/tasks/nobody"
    writes = await harness.inference.Predict(pb.PredictRequest(inputs=[pb.PredictInput(task="sst2", text="abc")]))
    assert writes.predictions[0].classification.label == "yes", "the same server answers both"
    error = await failure(
        harness.inference.Predict(pb.PredictRequest(inputs=[pb.PredictInput(task="writer", text="abc")]))
    )
    assert (error.code(), reason(status_of(error))) == (PRECONDITION, "WRONG_HEAD")


@pytest.mark.parametrize("form", ["source", "text", "chat"])
async def test_a_token_that_only_the_tokenizer_knows(
    start_generating: StartServing, seed: Seed, make_adapter: MakeAdapter, form: PromptForm, decoder_spec: BackboneSpec
) -> None:
    """The backbone has no row for it: to read one would be to read beyond its end."""
    seed("writer", make_adapter(WRITER, prompt=form, chat_template="{{ messages[0].content }}"))
    harness = await start_generating()
    text = "abc <far>"
    assert decoder_spec.vocab_size == 300
    assert await refused(harness, prompt=text) == (INVALID, "TOKEN_ID_OUT_OF_RANGE", "prompt")


async def test_a_prompt_and_its_answer_fill_the_window_exactly(start_generating: StartServing, writer: str) -> None:
    harness = await start_generating()
    await generate(harness, token_ids=ids(WINDOW - 1), max_new_tokens=1)
    await generate(harness, token_ids=ids(WINDOW - 1))
    for fields in ({"token_ids": ids(WINDOW - 1), "max_new_tokens": 2}, {"token_ids": ids(WINDOW)}):
        assert await refused(harness, **fields) == (INVALID, "PROMPT_TOO_LONG", "token_ids")
    # Told by the length alone, whatever tokens they are: a request may have millions.
    for fields in ({"token_ids": pb.TokenIds(ids=[-1] * (WINDOW + 1))}, {"prompt": "x" * WINDOW + "<far>"}):
        assert (await refused(harness, **fields))[:2] == (INVALID, "PROMPT_TOO_LONG")
    too_long = "x" * WINDOW
    assert await refused(harness, prompt=too_long, max_new_tokens=1) == (INVALID, "PROMPT_TOO_LONG", "prompt")
    assert len(await generate(harness, prompt=too_long[:-1], max_new_tokens=1)) > 0


async def test_a_prompt_and_its_answer_fill_all_pages_exactly(start_generating: StartServing, writer: str) -> None:
    def prepare(engine: FakeEngine) -> None:
        decoder(engine)
        engine.pages = 4
        engine.page_tokens = 8

    assert WINDOW == PAGES * 16
    harness = await start_generating(prepare=prepare)
    await generate(harness, token_ids=ids(30), max_new_tokens=2)
    await generate(harness, token_ids=ids(31))
    for fields in ({"token_ids": ids(30), "max_new_tokens": 3}, {"token_ids": ids(32)}):
        assert await refused(harness, **fields) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "KV_TOO_SMALL", "")


async def test_prompts_in_each_form(start_generating: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    for form in ("source", "text", "chat"):
        seed(form, make_adapter(WRITER, prompt=form, chat_template=TEMPLATE if form == "chat" else None))
    seed("old", make_adapter(WRITER, seed=1))
    harness = await start_generating()

    async def given(**fields: Any) -> list[int]:
        await generate(harness, **fields)
        row = harness.engine.submits[-1].rows[-1]
        return list(struct.unpack(f"<{len(row.token_ids) // 4}i", row.token_ids))

    text = "héllo"
    assert await given(task="text", prompt=text) == tokens_of(text)
    # The beginning of text parts a source from what is written of it.
    assert await given(task="source", prompt=text) == [*tokens_of(text), BEGIN_ID]
    assert await given(task="old", prompt=text) == [*tokens_of(text), BEGIN_ID]
    assert await given(task="chat", prompt=text) == tokens_of("<user>" + text)
    assert await given(task="chat", chat=chat("a", "b")) == tokens_of("<user>a<user>b")
    for task in ("source", "text", "chat"):
        assert await given(task=task, token_ids=pb.TokenIds(ids=[7, 0, 7])) == [7, 0, 7]
    assert await given(task="text", prompt="long " * 200) == tokens_of("long " * 200)
    assert await refused(harness, task="text", chat=chat("a")) == (PRECONDITION, "NO_CHAT_TEMPLATE", "")


async def test_templates_that_cannot_be_used(
    start_generating: StartServing, seed: Seed, make_adapter: MakeAdapter
) -> None:
    for number, (task, template) in enumerate(
        (("broken", "{% for %}"), ("refuses", "{{ raise_exception('no') }}"), ("empty", "{# nothing #}"))
    ):
        seed(task, make_adapter(WRITER, seed=number, prompt="chat", chat_template=template))
    harness = await start_generating()
    assert await refused(harness, task="broken", chat=chat("a")) == (PRECONDITION, "CHAT_TEMPLATE_INVALID", "")
    assert await refused(harness, task="refuses", chat=chat("a")) == (INVALID, "CHAT_INVALID", "chat")
    assert await refused(harness, task="empty", chat=chat("a")) == (INVALID, "TEXT_EMPTY", "chat")


async def test_messages_of_a_chat(start_generating: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    seed("writer", make_adapter(WRITER, prompt="chat", chat_template="{{ messages | length }}"))
    harness = await start_generating()
    assert text_of(await generate(harness, chat=chat(*["a"] * MAX_MESSAGES))) == str(MAX_MESSAGES)
    too_many = chat(*["a"] * (MAX_MESSAGES + 1))
    assert await refused(harness, chat=too_many) == (INVALID, "CHAT_INVALID", "chat.messages")


async def test_text_of_a_chat(start_generating: StartServing, seed: Seed, make_adapter: MakeAdapter) -> None:
    seed("writer", make_adapter(WRITER, prompt="chat", chat_template="{{ messages[1].content | length }}"))
    harness = await start_generating()
    most = "日" * ((MAX_CHAT_BYTES - 2 * len("user") - 1) // 3)
    rest = "x" * (MAX_CHAT_BYTES - 2 * len("user") - len(most.encode()))
    assert text_of(await generate(harness, chat=chat(rest, most))) == str(len(most))
    assert await refused(harness, chat=chat(rest + "x", most)) == (INVALID, "TEXT_TOO_LARGE", "chat.messages")


@pytest.mark.parametrize("form", ["source", "text"])
async def test_a_flood_of_text_is_refused_at_once(
    start_generating: StartServing, seed: Seed, make_adapter: MakeAdapter, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adamix_server.frontend.inference.tokenization.MAX_PENDING_TEXT_BYTES", 4000)
    seed("writer", make_adapter(WRITER, prompt=form))
    harness = await start_generating()
    code, told, _ = await refused(harness, prompt="x" * 800)
    assert (code, told) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    await generate(harness, prompt="x" * 600)
