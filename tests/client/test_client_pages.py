"""What the pages and the docstrings of the client show, run as it stands there against a server that is played."""

import ast
import asyncio
import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adamix.errors import InvalidRequest
from adamix_client import AsyncClient, Client, Input, StreamInput, adapters, administration, client, inference
from adamix_protos.v1 import adapters_pb2, inference_pb2
from adamix_server.api import status
from adamix_testing.played_server import PlayedServer
from adamix_testing.text_server import words

ROOT = Path(__file__).parents[2]
PAGES = ("client/README.md", "docs/tutorials/client.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
OLD, NEW = "0" * 64, "1" * 64


def answer(request: inference_pb2.PredictRequest) -> inference_pb2.PredictResponse:
    """`vectors` gives vectors, `sst2` says yes, and every other task says `fine`."""
    response = inference_pb2.PredictResponse()
    for index, item in enumerate(request.inputs):
        found = response.predictions.add(task=item.task, version=NEW)
        if item.text.isspace():
            error = InvalidRequest("text is empty", reason="TEXT_EMPTY", field=f"inputs[{index}].text")
            found.error.CopyFrom(status.to_status(error))
        elif item.task == "vectors":
            found.embedding.values.extend([0.0, 3.0, 6.0])
        else:
            label = "yes" if item.task == "sst2" else "fine"
            found.classification.MergeFrom(inference_pb2.Classification(label=label, label_id=1, scores=[0.05, 0.95]))
    return response


def streamed(requests: Iterator[inference_pb2.PredictStreamRequest]) -> Iterator[inference_pb2.PredictStreamResponse]:
    for request in requests:
        (found,) = answer(inference_pb2.PredictRequest(inputs=[request.input])).predictions
        yield inference_pb2.PredictStreamResponse(id=request.id, prediction=found)


def task_of(traffic: Any = ()) -> adapters_pb2.Task:
    return adapters_pb2.Task(name="tenants/default/tasks/sentiment", traffic=traffic)


@pytest.fixture(scope="module")
def server() -> Iterator[PlayedServer]:
    versions = [adapters_pb2.Version(digest=digest) for digest in (NEW, OLD)]
    with PlayedServer(
        Predict=answer,
        PredictStream=streamed,
        Generate=lambda _: words("w3 ", "w3"),
        RegisterAdapter=lambda requests: (
            [*requests] and adapters_pb2.RegisterAdapterResponse(version=adapters_pb2.Version(digest=NEW))
        ),
        ListVersions=lambda _: adapters_pb2.ListVersionsResponse(versions=versions),
        SetTraffic=lambda request: adapters_pb2.SetTrafficResponse(task=task_of(request.traffic)),
        PinVersion=lambda _: adapters_pb2.PinVersionResponse(),
        Rollback=lambda _: adapters_pb2.RollbackResponse(task=task_of()),
        WatchTasks=lambda _: iter([adapters_pb2.WatchTasksResponse(task=task_of())]),
    ) as found:
        yield found


def blocks() -> list[Any]:
    found = []
    for page in PAGES:
        fences = FENCE.findall((ROOT / page).read_text(encoding="utf-8"))
        for number, (language, code) in enumerate(fences):
            if language != "python":
                continue
            follows = fences[number + 1] if number + 1 < len(fences) else ("python", "")
            said = follows[1] if not follows[0] else None
            found.append(pytest.param(code, said, id=f"{Path(page).stem}-{number}"))
    return found


def test_the_pages_have_code() -> None:
    assert len(blocks()) >= 9


@pytest.mark.parametrize(("code", "said"), blocks())
def test_a_block_runs_as_it_stands_there(
    code: str,
    said: str | None,
    server: PlayedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """But for the server's port, which is one that is free."""
    assert code.count("127.0.0.1:50051") >= 1
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    (tmp_path / "sentiment.safetensors").write_bytes(b"adapter")
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("127.0.0.1:50051", server.address), "block", "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    if said is not None:
        assert printed.strip() == said.strip()


def examples(kind: type) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(recurse=True)
    return [test for part in kind.__mro__[:-1] for test in finder.find(part, part.__name__) if test.examples]


def test_examples_in_docstrings(server: PlayedServer) -> None:
    found = examples(Client)
    assert {test.name.rpartition(".")[2] for test in found} >= {
        "predict",
        "predict_iter",
        "predict_stream",
        "embed",
        "generate",
        "traffic",
    }
    assert {inspect.getmodule(part) for part in Client.__mro__[:-1]} == {client, inference, adapters, administration}
    with Client(server.address) as asked:
        for test in found:
            test.globs = {"client": asked, "Input": Input, "StreamInput": StreamInput}
            said: list[str] = []
            doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
            assert said == []


async def test_the_same_examples_on_an_event_loop(server: PlayedServer) -> None:
    """Doctest knows no `await`: each example is run as a coroutine, and its value or error is what stands there."""
    found = examples(AsyncClient)
    assert len(found) == len(examples(Client))
    async with AsyncClient(server.address) as asked:
        for test in found:
            names: dict[str, Any] = {"client": asked, "Input": Input, "StreamInput": StreamInput}
            for example in test.examples:
                printed: list[str] = []
                names["print"] = lambda *values, end="\n", to=printed: to.append(" ".join(map(str, values)) + end)
                wanted = example.want.strip()
                if example.exc_msg is not None:
                    with pytest.raises(InvalidRequest) as raised:
                        await run(example.source, names)
                    assert example.exc_msg.strip() == f"adamix_client.errors.InvalidRequest: {raised.value}"
                    continue
                value = await run(example.source, names)
                shown = "".join(printed) if value is None else repr(value)
                assert shown.strip() == wanted, example.source


async def run(source: str, names: dict[str, Any]) -> Any:
    """The value of an expression in which there may be `await`; None of statements."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    for mode in ("eval", "exec"):
        try:
            code = compile(source, "example", mode, flags)
        except SyntaxError:
            if mode == "exec":
                raise
            continue
        value = eval(code, names)
        return await value if asyncio.iscoroutine(value) else value
    raise AssertionError
