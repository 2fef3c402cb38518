"""A file of prompts, answered row by row into another file, which a later run of the same command goes on with.

Rows are written in the order of the prompts, each as soon as those before it are, so that what is there at any moment
is a beginning of the whole. Knows the client; nothing of flags.
"""

import fcntl
import json
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from rich.markup import escape

from adamix.cli.progress import progress
from adamix.cli.terminal import stderr
from adamix.data.files import MAX_FILE_BYTES, check_file, read_objects
from adamix.errors import AdamixError, Code, InvalidConfig, InvalidData
from adamix.texts import MAX_TEXT_BYTES
from adamix_client import Client, GeneratedText
from adamix_server.cli.asking import Asking
from adamix_server.limits.generation import MAX_CHAT_BYTES, MAX_MESSAGES

IN_FLIGHT = 16
# Rows that may be done before the one that is to be written next.
WINDOW = 64
MAX_TRIES = 5
_MAX_WAIT_S = 10.0
_TURN_S = 0.2
_WAYS = ("prompt", "source", "messages")
_ANSWER = ("text", "finish_reason", "token_ids", "logprobs", "error")
# Errors that are about one row: the next one may be answered.
_OWN_CODES = (Code.INTERNAL, Code.DEADLINE_EXCEEDED)
_OWN_FIELDS = ("prompt", "token_ids", "chat")
_OWN_REASONS = ("PROMPT_TOO_LONG", "KV_TOO_SMALL")


@dataclass(frozen=True)
class Prompt:
    """One row of the file.

    Attributes:
        where: `FILE:LINE`.
        row: all of it, which is written back.
    """

    where: str
    row: Mapping[str, Any]

    @property
    def text(self) -> str | None:
        text: str | None = self.row.get("prompt", self.row.get("source"))
        return text

    @property
    def messages(self) -> Sequence[Mapping[str, str]] | None:
        return self.row.get("messages")


@dataclass(frozen=True)
class Written:
    """How many rows there are in all, how many of those were there before, and how many have an error for a text."""

    rows: int
    resumed: int
    failed: int

    @property
    def document(self) -> dict[str, int]:
        return {"rows": self.rows, "resumed": self.resumed, "failed": self.failed}


class PromptFile:
    """The rows of `file`, and what is in `out` of them already; a with-block holds `out` for itself.

    Raises:
        InvalidConfig: the two are one file.
        InvalidData: a row of `file` is malformed, or `out` has rows of something else; the message names the line. Or
            another command writes `out`.
        OSError: `out` cannot be written.
    """

    def __init__(self, file: Path, out: Path) -> None:
        check_file(file, MAX_FILE_BYTES)
        self._file = file
        self.num_rows = sum(1 for _ in self._prompts())
        if not self.num_rows:
            raise InvalidData(f"{file.name} has no rows")
        if out.exists() and out.samefile(file):
            raise InvalidConfig("--out is the file that the prompts are read from", field="out")
        self._stop = threading.Event()
        self._out = out.open("a+b")
        try:
            self._take_over(out)
        except BaseException:
            self._out.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.close()

    def write(self, asking: Asking, client: Client) -> Written:
        """Ask for the rows that are not there yet, several at a time, and write each in its turn.

        A row that is refused has an `error`, which is told as well; what would be every row's error ends it.

        Raises:
            AdamixError: the server is gone, or refuses more than one row; what was written before stays.
        """
        pending: deque[tuple[Prompt, Future[GeneratedText]]] = deque()
        with progress("generating", total=self.num_rows) as shown, ThreadPoolExecutor(IN_FLIGHT) as pool:
            shown.done = self._done

            def write_next() -> None:
                self._write(*pending.popleft())
                shown.advance(note=f"{self._failed} failed" if self._failed else "")

            try:
                for prompt in islice(self._prompts(), self._done, None):
                    pending.append((prompt, pool.submit(self._ask, asking, client, prompt)))
                    if len(pending) == WINDOW:
                        write_next()
                while pending:
                    write_next()
            except BaseException:
                # Ctrl-C, too, leaves no call running: the pool waits for its threads.
                self._stop.set()
                for _, future in pending:
                    future.cancel()
                client.close()
                raise
        return Written(self.num_rows, self._done, self._failed)

    def _prompts(self) -> Iterator[Prompt]:
        for where, row in read_objects(self._file):
            _check(where, row)
            yield Prompt(where, row)

    def _take_over(self, out: Path) -> None:
        """Count the rows that are there, and take off one that was not written to its end."""
        try:
            fcntl.flock(self._out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidData(f"another command writes {out.name}") from None
        self._done = self._failed = whole_bytes = 0
        prompts = self._prompts()
        for line in _lines(self._out):
            prompt = next(prompts, None)
            found = _object(line)
            if prompt is None or found is None or not _is_of(found, prompt.row):
                raise InvalidData(
                    f"{out.name}:{self._done + 1}: not a row of {self._file.name} with its text; name another --out"
                )
            self._done += 1
            self._failed += "error" in found
            whole_bytes += len(line)
        self._out.truncate(whole_bytes)

    def _ask(self, asking: Asking, client: Client, prompt: Prompt) -> GeneratedText:
        """In a thread. Tries again what the server says may be tried again, from the beginning of the text."""
        for left in reversed(range(MAX_TRIES)):
            try:
                return GeneratedText.of(asking.begin(client, prompt.text, prompt.messages))
            except AdamixError as error:
                wait_s = error.retry_after_s
                if wait_s is None or not left or self._stop.wait(min(wait_s, _MAX_WAIT_S)):
                    raise
        raise AssertionError("unreachable")

    def _write(self, prompt: Prompt, future: "Future[GeneratedText]") -> None:
        try:
            answer = _result(future).document
        except AdamixError as error:
            if not _is_own(error):
                stderr.print(escape(f"{prompt.where}: not answered; the same command goes on from here"))
                raise
            stderr.print(escape(f"{prompt.where}: {error.message}"), soft_wrap=True)
            answer = {"error": {"reason": error.reason, "message": error.message}}
            self._failed += 1
        kept = {name: value for name, value in prompt.row.items() if name not in _ANSWER}
        told = {name: answer[name] for name in _ANSWER if name in answer}
        self._out.write(json.dumps(kept | told, ensure_ascii=False).encode() + b"\n")
        self._out.flush()


def _result(future: "Future[GeneratedText]") -> GeneratedText:
    """Waits in short turns: Ctrl-C that comes as a wait begins is only seen when it ends."""
    while not future.done():
        wait((future,), _TURN_S)
    return future.result()


def _check(where: str, row: Mapping[str, Any]) -> None:
    """Raise InvalidData unless a row says what to ask for, in one way."""
    ways = [way for way in _WAYS if way in row]
    if len(ways) != 1:
        raise InvalidData(f"{where}: needs one of prompt, source and messages, and has {' and '.join(ways) or 'none'}")
    value = row[ways[0]]
    if ways != ["messages"]:
        _check_text(f"{where}: {ways[0]}", value)
        return
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise InvalidData(f"{where}: messages is not a list of 1 to {MAX_MESSAGES}")
    size = 0
    for message in value:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise InvalidData(f"{where}: a message is not an object with a role and a content")
        size += _check_text(f"{where}: role", message["role"])
        size += _check_text(f"{where}: content", message["content"], may_be_empty=True)
    if size > MAX_CHAT_BYTES:
        raise InvalidData(f"{where}: messages are over {MAX_CHAT_BYTES >> 10} KiB together")


def _check_text(what: str, value: object, *, may_be_empty: bool = False) -> int:
    """Its bytes. Raises InvalidData."""
    if not isinstance(value, str) or not (value or may_be_empty):
        raise InvalidData(f"{what} is not a text")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidData(f"{what} holds half of a surrogate pair") from None
    if size > MAX_TEXT_BYTES:
        raise InvalidData(f"{what} is over {MAX_TEXT_BYTES >> 10} KiB")
    return size


def _is_own(error: AdamixError) -> bool:
    """Whether an error is that of one row; the others are of the server, the task or the flags, and so of all rows."""
    field = (error.field or "").partition(".")[0].partition("[")[0]
    return error.code in _OWN_CODES or error.reason in _OWN_REASONS or field in _OWN_FIELDS


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The whole lines of a file, from its beginning."""
    file.seek(0)
    for line in file:
        if line.endswith(b"\n"):
            yield line


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_of(found: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a row that was written is this one with an answer."""
    kept = [{name: value for name, value in each.items() if name not in _ANSWER} for each in (found, row)]
    return kept[0] == kept[1] and ("text" in found or "error" in found)
