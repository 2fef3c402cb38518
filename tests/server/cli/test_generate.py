"""`adamix generate` as a person types it, against texts that are played."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix.errors import AdamixError, InternalError, InvalidRequest, NotFound, Overloaded, Unavailable
from adamix_server.cli import prompt_file
from adamix_server.cli.main import app
from adamix_testing.servers import eventually
from adamix_testing.text_server import VERSION, Request, Response, TextServer, end, said, words

# Where nothing listens.
NOWHERE = "127.0.0.1:1"


def run(*arguments: object, code: int = 0, stdin: str | bytes | None = None) -> Any:
    """The result of `adamix generate …` that ends with this code."""
    result = CliRunner().invoke(app, ["generate", *map(str, arguments)], input=stdin)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def echo() -> Iterator[TextServer]:
    """Writes what it was asked with, in capitals, a letter at a time if it is short."""

    def answer(request: Request) -> Iterator[Response]:
        text = said(request).upper()
        step = 1 + len(text) // 100
        return words(*(text[i : i + step] for i in range(0, len(text), step)))

    with TextServer(answer) as server:
        yield server


def test_a_text_alone_is_on_stdout_and_its_end_on_stderr(echo: TextServer) -> None:
    result = run("poet", "late", "--server", echo.address)
    assert result.stdout == "LATE\n"
    assert result.stderr.startswith("eos: 4 tokens after 3, ")
    assert result.stderr.rstrip("\n").endswith(f" tokens/s, seed 7, version {VERSION[:12]}")
    assert result.stderr.count("\n") == 1


def test_a_text_comes_as_it_is_written() -> None:
    """The rest of it follows only when its beginning was read."""
    was_read = threading.Event()

    def answer(_: Request) -> Iterator[Response]:
        yield Response(text_delta="once ")
        assert was_read.wait(20)
        yield Response(text_delta="upon")
        yield end(2)

    with TextServer(answer) as server, adamix("poet", "a", "--server", server.address) as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 100) == b"once "
        was_read.set()
        assert process.stdout.read() == b"upon\n"
        assert process.wait(20) == 0


def adamix(*arguments: object) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "adamix_server", "generate", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_ctrl_c_ends_the_call_and_leaves_what_came(tmp_path: Path) -> None:
    def endless(_: Request) -> Iterator[Response]:
        for _ in itertools.count():
            yield Response(text_delta="on and ")
            time.sleep(0.01)

    with TextServer(endless) as server, adamix("poet", "a", "--server", server.address) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        begun = os.read(process.stdout.fileno(), 7)
        process.send_signal(signal.SIGINT)
        assert server.left.acquire(timeout=20)
        assert process.wait(20) == 130
        assert (begun + process.stdout.read()).endswith(b"on and \n")
        assert process.stderr.read() == b"error: interrupted\n"


def test_a_document(echo: TextServer) -> None:
    document = json.loads(run("poet", "ab", "--token-ids", "--logprobs", 1, "--json", "--server", echo.address).stdout)
    assert document == {
        "text": "AB",
        "finish_reason": "eos",
        "usage": {"prompt_tokens": 3, "generated_tokens": 2, "cached_tokens": 1},
        "version": VERSION,
        "seed": 7,
        "token_ids": [0, 1],
        "logprobs": [
            {"token_id": i, "logprob": -0.5, "alternatives": [{"token_id": 100 + i, "logprob": -2.0}]} for i in (0, 1)
        ],
    }
    assert echo.requests[0].return_token_ids


def test_ids_and_probabilities_that_were_asked_for_are_told_beside_the_text(echo: TextServer) -> None:
    result = run("poet", "ab", "--token-ids", "--logprobs", 1, "--server", echo.address)
    assert result.stdout == "AB\n"
    assert "token ids: 0 1\n" in result.stderr
    assert "token 1: -0.5000, 101 -2.0000\n" in result.stderr


def test_every_flag_reaches_the_server_and_none_is_sent_that_was_not_given(echo: TextServer) -> None:
    flags: dict[str, Any] = {
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.25,
        "min_p": 0.125,
        "repetition_penalty": 2.0,
        "presence_penalty": -1.0,
        "frequency_penalty": 1.0,
        "no_repeat_ngram_size": 4,
        "seed": 2**64 - 1,
        "length_penalty": 0.5,
    }
    given = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    others = ["--max-new-tokens=5", "--num-beams=1", "--stop=\n", "--stop=end", "--logprobs=2", f"--version={VERSION}"]
    run("poet", "a", *given, *others, "--server", echo.address)
    run("poet", "a", "--server", echo.address)
    asked, bare = echo.requests
    assert {name: getattr(asked.sampling, name) for name in flags} == flags
    assert (asked.max_new_tokens, asked.num_beams, list(asked.stop), asked.logprobs, asked.version) == (
        5,
        1,
        ["\n", "end"],
        2,
        VERSION,
    )
    assert bare == Request(task="poet", prompt="a")


def test_a_prompt_on_stdin(echo: TextServer) -> None:
    assert run("poet", "-", "--server", echo.address, stdin="two\nlines\n").stdout == "TWO\nLINES\n"
    assert echo.requests[0].prompt == "two\nlines"
    limit = 64 << 10
    assert run("poet", "-", "--server", echo.address, stdin="a" * limit + "\n").stdout == "A" * limit + "\n"
    assert "over 64 KiB" in run("poet", "-", "--server", NOWHERE, stdin="a" * (limit + 1), code=1).stderr
    assert "not UTF-8" in run("poet", "-", "--server", NOWHERE, stdin=b"\xff", code=1).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["poet"],
        ["poet", ""],
        ["poet", "a\udcff"],
        ["poet", "a", "--temperature", "5.1"],
        ["poet", "a", "--temperature", "nan"],
        ["poet", "a", "--top-k", "-1"],
        ["poet", "a", "--top-p", "0"],
        ["poet", "a", "--min-p", "1"],
        ["poet", "a", "--repetition-penalty", "0"],
        ["poet", "a", "--presence-penalty", "2.1"],
        ["poet", "a", "--frequency-penalty=-2.1"],
        ["poet", "a", "--seed=-1"],
        ["poet", "a", "--seed", str(2**64)],
        ["poet", "a", "--max-new-tokens", "0"],
        ["poet", "a", "--logprobs", "21"],
        ["poet", "a", "--num-beams", "17"],
        ["poet", "a", "--num-beams", "2", "--temperature", "1"],
        ["poet", "a", "--length-penalty", "nan"],
        ["poet", "a", "--no-repeat-ngram-size", "65"],
        ["poet", "a", "--stop", ""],
        ["poet", "a", "--stop", "a" * 65],
        ["poet", "a", *["--stop=a"] * 9],
        ["poet", "a", "--out", "rows.jsonl"],
        ["poet", "--file", "rows.jsonl"],
        ["poet", "a", "--file", "rows.jsonl", "--out", "out.jsonl"],
    ],
)
def test_a_mistake_is_told_before_any_connection(arguments: list[str]) -> None:
    result = run(*arguments, "--server", NOWHERE, code=2)
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""


def test_what_a_server_refuses_is_one_line(echo: TextServer) -> None:
    def refuses(_: Request) -> Iterator[Response]:
        raise NotFound("task not found", reason="TASK_NOT_FOUND")
        yield

    echo.answer = refuses
    result = run("poet", "a", "--server", echo.address, code=1)
    assert (result.stdout, result.stderr) == ("", "error: task not found\n")
    assert run("poet", "a", "--json", "--server", echo.address, code=1).stdout == ""


def test_what_came_before_an_error_stays_on_a_line_of_its_own(echo: TextServer) -> None:
    def dies(_: Request) -> Iterator[Response]:
        yield Response(text_delta="half")
        raise Unavailable("the engine is being started again", reason="ENGINE_RESTARTING")

    echo.answer = dies
    result = run("poet", "a", "--server", echo.address, code=1)
    assert result.stdout == "half\n"
    assert result.stderr == "error: the engine is being started again\n"


def test_a_terminal_is_not_steered_by_a_text(echo: TextServer, monkeypatch: pytest.MonkeyPatch) -> None:
    echo.answer = lambda _: words("\x1b[2J", "a\tb\nc", "\x9b1m\r")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    from adamix_server.cli import generate

    terminal = Terminal()
    monkeypatch.setattr(generate.sys, "stdout", terminal)
    from adamix_client import Client

    with Client(echo.address) as client:
        generate._stream(client.generate("poet", "a"))
    assert terminal.getvalue() == "\\x1b[2Ja\tb\nc\\x9b1m\\x0d\n"


# --- files of prompts -------------------------------------------------------------------------------------------------

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
