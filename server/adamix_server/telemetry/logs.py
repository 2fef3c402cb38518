"""Logs as JSON, one line per record, on stderr, which nobody who logs ever waits for (`log_writer.py`).

Whatever a caller sent can end up in a log: every string is escaped to ASCII, so that it cannot start a line of its own
or steer a terminal, and cut at 256 bytes. Records keep the fields given as `extra=`.
"""

import atexit
import json
import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

from adamix_server.telemetry.log_writer import LogStream, LogWriter

MAX_STRING_BYTES = 256
MAX_MESSAGE_BYTES = 2_048
MAX_STACK_BYTES = 16_384
# How long a process that ends waits for a log that stands still.
EXIT_S = 1.0
# What every line of ours begins with.
_START = b'{"time": "'
_STDERR = 2

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


class _Lines(logging.Handler):
    """Hands records to a writer, formatted by whoever logs: what they hold may change the moment after."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def createLock(self) -> None:
        """None: the writer has its own. Of two, a finaliser that logs could take one each in two threads."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        # A mistake in a log line must neither end what it tells of nor be printed past the writer, as logging would.
        except Exception as error:  # noqa: BLE001
            said = f"a record of {record.name}:{record.lineno} cannot be formatted: {type(error).__name__}"
            line = self.format(logging.makeLogRecord({"name": __name__, "levelname": "ERROR", "msg": said}))
        self._writer.put(line.encode() + b"\n")


class _Process:
    """The log of this process, once it is diverted."""

    writer: LogWriter | None = None


def divert(process: str, fd: int = _STDERR) -> LogWriter:
    """From now on nothing that this process prints on stderr waits for whoever reads it: also no trace, no warning."""
    # Closed when the process was started, it would soon be something else: a socket, the catalog.
    was_closed = sys.stderr is None
    while (spare := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(spare)
    fd = os.open(os.devnull, os.O_WRONLY) if was_closed else fd
    writer = LogWriter(fd, lambda count: _line(process, __name__, f"{count} log records were dropped"))
    _Process.writer, sys.stderr = writer, LogStream(writer, fd)
    atexit.unregister(flush)
    atexit.register(flush)
    return writer


def configure(level: str, *, process: str) -> None:
    """Send all logs of this process as JSON, from `level` up, to stderr or where `divert` has sent it.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        process: what this process is, for example `frontend-0`; in every line.
    """
    sink = _Lines(_Process.writer or divert(process))
    sink.setFormatter(JsonFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[sink], force=True)
    logging.captureWarnings(True)


def relay(process: str, line: bytes) -> None:
    """Log a line, without its newline, that a child wrote: a record of its own, or what some library prints."""
    if not line.strip():
        return
    if not (line.startswith(_START) and line.isascii() and line.decode("ascii").isprintable()):
        line = _line(process, "stderr", line.decode("utf-8", "backslashreplace").rstrip()).rstrip(b"\n")
    if _Process.writer is None:
        print(line.decode(), file=sys.stderr)
    else:
        _Process.writer.put(line + b"\n")


def flush(timeout_s: float = EXIT_S) -> bool:
    """Wait until everything is written, but not for ever; whether it is."""
    return _Process.writer is None or _Process.writer.flush(timeout_s)


def take_dropped() -> int:
    """Records dropped since this was last asked: the log did not take them."""
    return 0 if _Process.writer is None else _Process.writer.take_dropped()


def _line(process: str, logger: str, message: str) -> bytes:
    """A warning that comes from no code of ours."""
    record = logging.makeLogRecord({"name": logger, "levelname": "WARNING", "msg": message})
    return JsonFormatter(process).format(record).encode() + b"\n"


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
