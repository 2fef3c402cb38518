"""`adamix generate` as a person types it, against texts that are played."""

import io
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adamix.errors import NotFound, Unavailable
from adamix_testing.generate_command import NOWHERE, adamix, run
from adamix_testing.text_server import VERSION, Request, Response, TextServer, end, words


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
