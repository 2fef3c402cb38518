"""One line of JSON per record, whatever is in it."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from adamix_server.telemetry import logs

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Configure logging to a buffer; calling the fixture gives the parsed lines."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers.clear()
    stream = io.StringIO()
    logs.configure("info", process="frontend", stream=stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logging.captureWarnings(False)
    root.handlers[:] = before
    root.setLevel(level)


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
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if isinstance(handler.formatter, logs.JsonFormatter)]
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
