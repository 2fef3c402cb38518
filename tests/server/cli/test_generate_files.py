"""`adamix generate --file`: prompts that are answered into another file, and gone on with."""

import itertools
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adamix.errors import AdamixError, InternalError, InvalidRequest, NotFound, Overloaded, Unavailable
from adamix_server.cli import prompt_file
from adamix_testing.generate_command import NOWHERE, adamix, run
from adamix_testing.servers import eventually
from adamix_testing.text_server import Request, Response, TextServer, end, said, words

Rows = Callable[..., Path]


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    """`rows(…)` writes a file with these rows, or lines."""

    def write(*found: dict[str, Any] | str, name: str = "in.jsonl") -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in found]
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_back_in_order_with_their_texts(echo: TextServer, rows: Rows, tmp_path: Path) -> None:
    def shuffled(request: Request) -> Iterator[Response]:
        # The later it was asked for, the sooner it is there.
        time.sleep(0.05 / len(request.prompt or "chat"))
        return words(*said(request).upper())

    echo.answer = shuffled
    chat = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": ""}]}
    asked = [{"prompt": "a" * (1 + i % 50), "id": i, "text": "what was there"} for i in range(150)]
    asked += [{"source": "name : X", "references": ["é"]}, chat]
    file, out = rows(*asked[:3], "", *asked[3:]), tmp_path / "out.jsonl"
    result = run("poet", "--file", file, "--out", out, "--json", "--server", echo.address)
    assert json.loads(result.stdout) == {"rows": 152, "resumed": 0, "failed": 0}
    found = read(out)
    assert found[:150] == [row | {"text": row["prompt"].upper(), "finish_reason": "eos"} for row in asked[:150]]
    assert found[150] == asked[150] | {"text": "NAME : X", "finish_reason": "eos"}
    assert found[151] == chat | {"text": "USER=HI ASSISTANT=", "finish_reason": "eos"}


def test_so_many_are_under_way_and_no_more(echo: TextServer, rows: Rows, tmp_path: Path) -> None:
    most, lock, now = 0, threading.Lock(), 0
    full = threading.Event()

    def counted(request: Request) -> Iterator[Response]:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
            if now == prompt_file.IN_FLIGHT:
                full.set()
        # However slowly they come: the first ones wait for the others.
        full.wait(30)
        time.sleep(0.01)
        with lock:
            now -= 1
        yield from words("x")

    echo.answer = counted
    file = rows(*[{"prompt": str(i)} for i in range(4 * prompt_file.IN_FLIGHT)])
    run("poet", "--file", file, "--out", tmp_path / "out.jsonl", "--server", echo.address)
    assert most == prompt_file.IN_FLIGHT


def test_ids_and_probabilities_of_rows(echo: TextServer, rows: Rows, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run("poet", "--file", rows({"prompt": "a"}), "--out", out, "--token-ids", "--logprobs", 1, "--server", echo.address)
    (row,) = read(out)
    assert row["token_ids"] == [0]
    assert row["logprobs"][0]["alternatives"] == [{"token_id": 100, "logprob": -2.0}]


def test_a_row_that_is_refused_has_an_error_and_its_line(echo: TextServer, rows: Rows, tmp_path: Path) -> None:
    def picky(request: Request) -> Iterator[Response]:
        if request.prompt == "long":
            raise InvalidRequest("the prompt has 9 tokens, at most 8", reason="PROMPT_TOO_LONG", field="prompt")
        if request.prompt == "bug":
            raise InternalError("internal error, id=5")
        yield from words("ok")

    echo.answer = picky
    asked = [{"prompt": "a"}, {"prompt": "long"}, {"prompt": "bug"}, {"prompt": "b"}]
    file, out = rows(*asked), tmp_path / "out.jsonl"
    result = run("poet", "--file", file, "--out", out, "--json", "--server", echo.address, code=1)
    assert json.loads(result.stdout) == {"rows": 4, "resumed": 0, "failed": 2}
    assert "in.jsonl:2: the prompt has 9 tokens, at most 8\n" in result.stderr
    assert "in.jsonl:3: internal error, id=5\n" in result.stderr
    error = {"reason": "PROMPT_TOO_LONG", "message": "the prompt has 9 tokens, at most 8"}
    assert read(out)[1] == {"prompt": "long", "error": error}
    assert [row.get("text") for row in read(out)] == ["ok", None, None, "ok"]
    # They have their answer, and are not asked again.
    run("poet", "--file", file, "--out", out, "--server", echo.address, code=1)
    assert len(echo.requests) == 4


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("no server", reason="DRAINING"),
        NotFound("task not found"),
        InvalidRequest("top_k is over the vocabulary", field="sampling.top_k"),
    ],
)
def test_what_is_every_rows_error_ends_it_and_the_same_command_goes_on(
    error: AdamixError, echo: TextServer, rows: Rows, tmp_path: Path
) -> None:
    is_broken = True

    def breaks(request: Request) -> Iterator[Response]:
        if is_broken and request.prompt == "2":
            raise error
        yield from words(request.prompt)

    echo.answer = breaks
    file, out = rows(*[{"prompt": str(i)} for i in range(5)]), tmp_path / "out.jsonl"
    result = run("poet", "--file", file, "--out", out, "--server", echo.address, code=1)
    assert "in.jsonl:3: not answered" in result.stderr
    assert f"error: {error.message}\n" in result.stderr
    assert [row["text"] for row in read(out)] == ["0", "1"]
    is_broken = False
    result = run("poet", "--file", file, "--out", out, "--json", "--server", echo.address)
    assert json.loads(result.stdout) == {"rows": 5, "resumed": 2, "failed": 0}
    assert [row["text"] for row in read(out)] == ["0", "1", "2", "3", "4"]
    assert [request.prompt for request in echo.requests].count("0") == 1


def test_what_may_be_tried_again_is_from_the_beginning_of_its_text(
    echo: TextServer, rows: Rows, tmp_path: Path
) -> None:
    tries = 0

    def busy(_: Request) -> Iterator[Response]:
        nonlocal tries
        tries += 1
        yield Response(text_delta="half")
        if tries < 4:
            raise Overloaded("the queue is full", reason="OVERLOADED", retry_after_s=0.001)
        yield end(1)

    echo.answer = busy
    out = tmp_path / "out.jsonl"
    run("poet", "--file", rows({"prompt": "a"}), "--out", out, "--server", echo.address)
    assert read(out) == [{"prompt": "a", "text": "half", "finish_reason": "eos"}]
    tries = -100
    run("poet", "--file", rows({"prompt": "b"}), "--out", tmp_path / "2.jsonl", "--server", echo.address, code=1)
    assert tries == prompt_file.MAX_TRIES - 100


def test_a_row_that_was_cut_off_is_asked_again(echo: TextServer, rows: Rows, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    file = rows({"prompt": "a"}, {"prompt": "b"})
    out.write_text('{"prompt": "a", "text": "A", "finish_reason": "eos"}\n{"prompt": "b", "te')
    run("poet", "--file", file, "--out", out, "--server", echo.address)
    assert [row["text"] for row in read(out)] == ["A", "B"]
    assert [request.prompt for request in echo.requests] == ["b"]


@pytest.mark.parametrize(
    "written",
    [
        '{"prompt": "b", "text": "B", "finish_reason": "eos"}',
        '{"prompt": "a", "id": 1, "text": "A", "finish_reason": "eos"}',
        '{"prompt": "a"}',
        '{"prompt": "a", "text": "A"}\n{"prompt": "a", "text": "A"}',
        "not json",
        "[]",
    ],
)
def test_rows_of_something_else_are_left_as_they_are(written: str, rows: Rows, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(written + "\n")
    result = run("poet", "--file", rows({"prompt": "a"}), "--out", out, "--server", NOWHERE, code=1)
    assert "out.jsonl:" in result.stderr
    assert out.read_text() == written + "\n"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ({}, "has none"),
        ({"prompt": "a", "source": "b"}, "has prompt and source"),
        ({"prompt": ""}, "not a text"),
        ({"prompt": 5}, "not a text"),
        ('{"prompt": "\\ud800"}', "surrogate"),
        ({"source": "a" * ((64 << 10) + 1)}, "over 64 KiB"),
        ({"messages": []}, "1 to 256"),
        ({"messages": [{"role": "user", "content": "a"}] * 257}, "1 to 256"),
        ({"messages": [{"role": "user", "content": "a" * 40_000}] * 2}, "over 64 KiB together"),
        ({"messages": [{"role": "user"}]}, "role and a content"),
        ({"messages": [{"role": "user", "content": None}]}, "not a text"),
    ],
)
def test_a_malformed_row_is_named_before_any_connection(
    row: dict[str, Any] | str, said: str, rows: Rows, tmp_path: Path
) -> None:
    file = rows({"prompt": "a"}, row)
    result = run("poet", "--file", file, "--out", tmp_path / "out.jsonl", "--server", NOWHERE, code=1)
    assert "in.jsonl:2: " in result.stderr
    assert said in result.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_files_that_cannot_be_used(rows: Rows, tmp_path: Path) -> None:
    file = rows({"prompt": "a"})
    assert "--out is the file" in run("poet", "--file", file, "--out", file, "--server", NOWHERE, code=2).stderr
    assert read(file) == [{"prompt": "a"}]
    empty = rows(name="empty.jsonl")
    assert "no rows" in run("poet", "--file", empty, "--out", tmp_path / "o", "--server", NOWHERE, code=1).stderr
    missing = tmp_path / "missing.jsonl"
    assert (
        "does not exist" in run("poet", "--file", missing, "--out", tmp_path / "o", "--server", NOWHERE, code=1).stderr
    )
    nowhere = tmp_path / "no" / "where.jsonl"
    assert "No such file" in run("poet", "--file", file, "--out", nowhere, "--server", NOWHERE, code=1).stderr
    with prompt_file.PromptFile(file, tmp_path / "o.jsonl"):
        again = run("poet", "--file", file, "--out", tmp_path / "o.jsonl", "--server", NOWHERE, code=1)
    assert "another command writes o.jsonl" in again.stderr


def test_ctrl_c_leaves_a_beginning_and_no_call(rows: Rows, tmp_path: Path) -> None:
    started = threading.Semaphore(0)

    def answer(request: Request) -> Iterator[Response]:
        if request.prompt in ("0", "1"):
            yield from words(request.prompt)
            return
        started.release()
        for _ in itertools.count():
            yield Response(text_delta="on and ")
            time.sleep(0.01)

    file, out = rows(*[{"prompt": str(i)} for i in range(100)]), tmp_path / "out.jsonl"
    with (
        TextServer(answer) as server,
        adamix("poet", "--file", file, "--out", out, "--server", server.address) as process,
    ):
        for _ in range(prompt_file.IN_FLIGHT):
            assert started.acquire(timeout=20)
        eventually(lambda: len(read(out)) == 2, "what is done is written")
        process.send_signal(signal.SIGINT)
        for _ in range(prompt_file.IN_FLIGHT):
            assert server.left.acquire(timeout=20)
        assert process.wait(20) == 130
        assert process.stderr is not None
        assert process.stderr.read().endswith(b"error: interrupted\n")
    assert [row["text"] for row in read(out)] == ["0", "1"]
    assert len(server.requests) == prompt_file.IN_FLIGHT + 2
