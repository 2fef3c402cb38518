"""One line of JSON per record, whatever is in it."""

import json
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adamix_server.telemetry import logs
from adamix_server.telemetry.log_writer import LogStream
from adamix_testing.own_logs import own_logs

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    """Configure logging to a file; calling the fixture gives the parsed lines."""
    log = tmp_path / "log"
    fd = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def read() -> list[dict[str, Any]]:
        assert logs.flush(10)
        return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]

    with own_logs():
        logs.divert("frontend", fd)
        logs.configure("info", process="frontend")
        yield read
    os.close(fd)


def only_ours() -> None:
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if isinstance(handler.formatter, logs.JsonFormatter)]


def test_a_record_is_one_line_with_its_fields(lines: Lines) -> None:
    logging.getLogger("adamix").info("call of %s", "sst2", extra={"request_id": "r1", "seconds": 0.5})
    (line,) = lines()
    assert line["message"] == "call of sst2"
    assert (line["level"], line["process"], line["logger"]) == ("info", "frontend", "adamix")
    assert (line["request_id"], line["seconds"]) == ("r1", 0.5)
    assert line["time"].endswith("+00:00")


@pytest.mark.parametrize(
    "hostile", ['x\n{"level": "error"}', "\x1b[31mred", "\u202egnp.exe", "\r\x00", '"}', "\ud800"], ids=ascii
)
def test_a_hostile_string_stays_inside_its_line(lines: Lines, hostile: str) -> None:
    # pytest's own handler would put half a character into its report, which then cannot be passed on.
    only_ours()
    logging.getLogger("adamix").info("text %s", hostile, extra={"task": hostile})
    (line,) = lines()
    assert set(line) == {"time", "level", "process", "logger", "message", "task"}
    if hostile != "\ud800":
        assert line["task"] == hostile


def test_hostile_strings_are_escaped_to_plain_ascii() -> None:
    formatter = logs.JsonFormatter("frontend")
    record = logging.makeLogRecord({"msg": "%s", "args": ("\x1b[2J\u202e\n",)})
    text = formatter.format(record)
    assert text.isascii()
    assert text.isprintable()


def test_long_strings_are_cut(lines: Lines) -> None:
    logging.getLogger("adamix").info("text %s", "ä" * 10_000, extra={"task": "y" * 10_000})
    (line,) = lines()
    assert len(line["message"].encode()) < 300
    assert line["task"] == "y" * 256 + "[cut]"


def test_an_exception_has_its_stack_in_the_same_line(lines: Lines) -> None:
    try:
        int("inner\ntext")
    except ValueError:
        logging.getLogger("adamix").exception("failed")
    (line,) = lines()
    assert "ValueError: invalid literal" in line["stack"]
    assert line["level"] == "error"


def test_levels_below_the_configured_one_are_silent(lines: Lines) -> None:
    logging.getLogger("adamix").debug("quiet")
    assert lines() == []


def test_a_template_with_mapping_or_wrong_arguments(lines: Lines) -> None:
    logging.getLogger("adamix").info("%(name)s", {"name": "z" * 5000})
    (line,) = lines()
    assert len(line["message"]) <= logs.MAX_MESSAGE_BYTES + len("[cut]")


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.filterwarnings("default")
def test_nothing_that_python_prints_by_itself_goes_past_the_log(
    lines: Lines, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    only_ours()
    logging.getLogger("adamix").info("%d", "no number")
    logging.getLogger("adamix").info("%s", Unprintable(), extra={"task": Unprintable()})
    warnings.warn("old", stacklevel=1)
    messages = [line["message"] for line in lines()]
    for message, name in zip(messages, ("TypeError", "RuntimeError"), strict=False):
        assert re.fullmatch(rf"a record of adamix:\d+ cannot be formatted: {name}", message)
    assert "old" in messages[2]
    # Prints, and the traces of exceptions that nobody caught.
    assert logs._Process.writer is not None
    monkeypatch.setattr(sys, "stderr", LogStream(logs._Process.writer, 2))
    print("half a", end=" ", file=sys.stderr)
    print("line", file=sys.stderr)
    try:
        {}["lost"]
    except KeyError:
        traceback.print_exc()
    print("no newline", end="", file=sys.stderr, flush=True)
    assert logs.flush(10)
    printed = (tmp_path / "log").read_text().splitlines()[3:]
    assert printed[0] == "half a line"
    assert printed[-2:] == ["KeyError: 'lost'", "no newline"]
    assert capfd.readouterr() == ("", "")


def test_what_a_child_prints_becomes_a_record_and_its_own_records_stay_as_they_are(lines: Lines) -> None:
    record = logs.JsonFormatter("engine-0").format(logging.makeLogRecord({"msg": "ready", "levelname": "INFO"}))
    logs.relay("engine-0", record.encode())
    logs.relay("engine-0", "terminate called: \x1b[31m\u202eö\r".encode())
    logs.relay("engine-0", b'{"time": "\x1b[2J"}')
    own, printed, forged = lines()
    assert own == json.loads(record)
    assert (printed["process"], printed["logger"], printed["level"]) == ("engine-0", "stderr", "warning")
    assert printed["message"] == "terminate called: \x1b[31m\u202eö"
    assert forged["message"] == '{"time": "\x1b[2J"}'


def test_many_threads_log_whole_lines(lines: Lines) -> None:
    def work() -> None:
        for number in range(200):
            logging.getLogger("adamix").info("x" * 200, extra={"number": number})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line["number"] for line in lines()) == sorted(list(range(200)) * 4)
