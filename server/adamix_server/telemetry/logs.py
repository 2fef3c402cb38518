"""Logs as JSON, one line per record, on stderr.

Whatever a caller sent can end up in a log: every string is escaped to ASCII, so that it cannot start a line of its own
or steer a terminal, and cut at 256 bytes. Records keep the fields given as `extra=`.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

MAX_STRING_BYTES = 256
MAX_MESSAGE_BYTES = 2_048
MAX_STACK_BYTES = 16_384

_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one line of ASCII JSON: `time level process logger message`, the extras, and `stack` if any."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "message": _cut(_message(record), MAX_MESSAGE_BYTES),
        }
        for name, value in vars(record).items():
            if name not in _OWN_FIELDS:
                line[name] = _plain(value)
        if record.exc_info and record.exc_info[0] is not None:
            line["stack"] = _cut(self.formatException(record.exc_info), MAX_STACK_BYTES)
        return json.dumps(line, ensure_ascii=True, default=str)


def configure(level: str, *, process: str, stream: TextIO | None = None) -> None:
    """Send all logs of this process to stderr (or `stream`) as JSON, from `level` up.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        process: what this process is, for example `frontend-0`; in every line.
    """
    sink = logging.StreamHandler(stream or sys.stderr)
    sink.setFormatter(JsonFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[sink], force=True)
    logging.captureWarnings(True)


def _message(record: logging.LogRecord) -> str:
    # The template is ours; the arguments may be a stranger's.
    if isinstance(record.args, tuple):
        return str(record.msg) % tuple(_plain(value) for value in record.args) if record.args else str(record.msg)
    return record.getMessage()


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return _cut(str(value), MAX_STRING_BYTES)


def _cut(text: str, max_bytes: int) -> str:
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= max_bytes:
        return data.decode()
    return data[:max_bytes].decode("utf-8", "ignore") + "[cut]"
