"""Chats into texts, by templates of strangers: the parent's side of `sandbox.py`.

A thread cannot be ended, a process can: one child stays warm and renders for all threads in turn, milliseconds at a
time, and is started anew when a template has been its end. Its answer is believed only where it has the right form. A
template that ran out of time or memory, or was the child's end, rests for a moment, lest one that always does take the
turns of all others; the own one of the backbone does not. It rests for who asked alone, since the messages of one
say nothing of another's.

Knows neither tokens nor requests.
"""

import contextlib
import hashlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from adamix.errors import AdamixError, InvalidConfig, InvalidData, Unavailable
from adamix.files.manifest import MAX_CHAT_TEMPLATE_BYTES

if TYPE_CHECKING:
    from adamix.prompts import sandbox
    from adamix.prompts.prompts import Message

# -I: neither the environment nor the working directory can add code. -B: it may not write files. By its path, because
# it needs nothing of this package, and starts in half the time without.
_COMMAND = (sys.executable, "-I", "-B", str(Path(__file__).with_name("sandbox.py")))
# CPU seconds of the child. Compiling happens once for a template; what all of them need together is kept.
RENDER_S = 0.05
COMPILE_S = 0.5
MAX_OUTPUT_BYTES = 256 << 10
# Wall-clock: the machine may be busy with other things.
_PATIENCE_S = 10.0
REST_S = 1.0
MAX_REST_S = 64.0
MAX_RESTING = 1024
# JSON may write a byte as six.
_MAX_ANSWER_BYTES = 8 * MAX_OUTPUT_BYTES
_LENGTH_BYTES = 4
_TRIES = 2
# How a child ends: by the second of its two timers; by others, as who stops a server or runs out of memory.
_TIMED_OUT = -signal.SIGPROF
_BY_OTHERS = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)

_PROBLEMS: dict[str, tuple[type[AdamixError], str]] = {
    "syntax": (InvalidConfig, "is not in jinja2's language"),
    "loads": (InvalidConfig, "loads another template, and there is none that it could load"),
    "involved": (InvalidConfig, "is too involved to be compiled"),
    "refused": (InvalidData, "refuses these messages"),
    "time": (InvalidData, f"takes more than {round(1000 * RENDER_S)} ms of CPU time for these messages"),
    "memory": (InvalidData, "takes too much memory for these messages"),
    "output": (InvalidData, f"makes more than {MAX_OUTPUT_BYTES >> 10} KiB of text of these messages"),
    "unsafe": (InvalidData, "does what no template may"),
    "undefined": (InvalidData, "uses what these messages do not have"),
    "fails": (InvalidData, "fails on these messages"),
    "end": (InvalidData, "fails on these messages"),
}


# To be told them takes as long as many renderings, a new child at the least.
_COSTLY = ("time", "memory", "involved", "end")
_LAST_BREATH_S = 0.2

log = logging.getLogger(__name__)


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str | None = None
    problem: str | None = None
    line: int = 0
    detail: str = ""


class _Resting(msgspec.Struct, frozen=True):
    """A template that is not tried again until then, what kept it from being rendered, and how often it was so."""

    until: float
    answer: _Answer
    times: int


class ChatRenderer:
    """Renders chats in a child process, which starts with the first and ends with this. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock_of_resting = threading.Lock()
        self._child: _Child | None = None
        # By who asked, and a hash of the template.
        self._resting: OrderedDict[tuple[str, bytes], _Resting] = OrderedDict()

    def render(
        self,
        template: str,
        messages: "Sequence[Message]",
        special_tokens: Mapping[str, str],
        *,
        is_own: bool = False,
        asker: str = "",
    ) -> str:
        """The text of a chat, up to where its answer begins. Blocks.

        Args:
            special_tokens: what a template knows by names like `eos_token`.
            is_own: the template is the backbone's.
            asker: whose messages they are.

        Raises:
            InvalidConfig: the template cannot be used, whatever the messages are.
            InvalidData: it refuses the messages, or takes too much for them.
            Unavailable: the child cannot be started, or others ended it.
        """
        variables: dict[str, Any] = {
            **special_tokens,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        order: sandbox.Order = {"template": _sized(template), "variables": variables}
        name = asker, hashlib.blake2b(template.encode(errors="surrogatepass")).digest()
        resting = None if is_own else self._resting.get(name)
        if resting is not None and resting.until > time.monotonic():
            raise _error(resting.answer)
        answer = self._ask(order)
        if not is_own:
            self._take_note(name, answer)
        if answer.text is None:
            raise _error(answer)
        return answer.text

    def check(self, template: str) -> None:
        """Raise InvalidConfig unless a template can be compiled; Unavailable as `render`."""
        answer = self._ask({"template": _sized(template), "variables": None})
        if answer.text is None:
            raise _error(answer)

    def close(self) -> None:
        """End the child. A later call starts another."""
        with self._lock:
            self._end()

    def _take_note(self, name: tuple[str, bytes], answer: _Answer) -> None:
        """Of what a template has taken: each time in a row that it is too much, it rests for twice as long."""
        with self._lock_of_resting:
            known = self._resting.pop(name, None)
            if answer.problem not in _COSTLY:
                return
            times = 0 if known is None else known.times + 1
            rest_s = min(REST_S * 2.0 ** min(times, 9), MAX_REST_S)
            self._resting[name] = _Resting(time.monotonic() + rest_s, answer, times)
            if len(self._resting) > MAX_RESTING:
                self._resting.popitem(last=False)

    def _ask(self, order: "sandbox.Order") -> _Answer:
        data = json.dumps(order).encode()
        with self._lock:
            for _ in range(_TRIES):
                answer = self._exchange(data)
                if answer is not None:
                    return answer
        raise Unavailable("chats cannot be rendered at the moment; try again", retry_after_s=REST_S)

    def _exchange(self, data: bytes) -> _Answer | None:
        """What becomes of an order; None if that is for another child to say."""
        ends_at = time.monotonic() + _PATIENCE_S
        try:
            if self._child is None:
                self._child = _Child(ends_at)
            is_first = not self._child.has_answered
            answer = self._child.ask(data, ends_at)
        except _GoneError as gone:
            self._child = None
            if gone.code == _TIMED_OUT:
                return _Answer(problem="time")
            log.warning("the child that renders chats ended with code %d", gone.code)
            return None if gone.code in _BY_OTHERS else _Answer(problem="end")
        except OSError as error:
            log.warning("chats are not rendered: %s", error)
            self._end()
            return None
        if answer.problem == "memory":
            # What is left of it may be in pieces, and not by this template: the word of a new child counts.
            self._end()
            return answer if is_first else None
        return answer

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


class _GoneError(Exception):
    """A child has ended, of its own accord or by others."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Child:
    """A child that is ready. `end` ends it; so does the end of the object.

    Raises:
        OSError: it could not be started, or does not say that it is ready.
    """

    def __init__(self, ends_at: float) -> None:
        limits: sandbox.Limits = {"compile_s": COMPILE_S, "render_s": RENDER_S, "max_bytes": MAX_OUTPUT_BYTES}
        self._process = subprocess.Popen(
            (*_COMMAND, json.dumps(limits)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            # Nothing of the parent's but where shared libraries are, and where it is on Earth: the child needs no key.
            env={name: os.environ[name] for name in ("LD_LIBRARY_PATH", "TZ") if name in os.environ},
            # A Ctrl-C for the parent is not for the child, which ends when its stdin does.
            start_new_session=True,
        )
        self.end = weakref.finalize(self, _end, self._process)
        self.has_answered = False
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise OSError("a child without pipes")
        self._stdin, self._stdout = stdin.fileno(), stdout.fileno()
        os.set_blocking(self._stdin, False)
        try:
            self._read(ends_at)
        except BaseException:  # nothing is handled: it goes on, without the child
            self.end()
            raise

    def ask(self, data: bytes, ends_at: float) -> _Answer:
        """Its answer to an order.

        Raises:
            _GoneError: it has ended.
            OSError: it does not answer in time, or not as a child of ours would.
        """
        try:
            rest = memoryview(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
            while rest:
                _wait(self._stdin, select.POLLOUT, ends_at)
                rest = rest[os.write(self._stdin, rest) :]
            answer = self._read(ends_at)
        except BrokenPipeError:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LAST_BREATH_S)
            self.end()
            raise _GoneError(self._process.returncode) from None
        self.has_answered = True
        return answer

    def _read(self, ends_at: float) -> _Answer:
        length = int.from_bytes(self._read_bytes(_LENGTH_BYTES, ends_at), "big")
        if length > _MAX_ANSWER_BYTES:
            raise OSError("an answer is too long")
        try:
            return msgspec.json.decode(self._read_bytes(length, ends_at), type=_Answer)
        except msgspec.DecodeError:
            raise OSError("an answer has another form") from None

    def _read_bytes(self, length: int, ends_at: float) -> bytes:
        parts: list[bytes] = []
        while length:
            _wait(self._stdout, select.POLLIN, ends_at)
            part = os.read(self._stdout, length)
            if not part:
                raise BrokenPipeError("the child has ended")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def _end(process: "subprocess.Popen[bytes]") -> None:
    with process:  # closes its pipes and waits
        process.kill()


def _wait(descriptor: int, event: int, ends_at: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(0.0, 1000 * (ends_at - time.monotonic()))):
        raise TimeoutError("the child does not answer")


def _sized(template: str) -> str:
    if len(template.encode(errors="surrogatepass")) > MAX_CHAT_TEMPLATE_BYTES:
        raise InvalidConfig(f"the chat template is over {MAX_CHAT_TEMPLATE_BYTES >> 10} KiB")
    return template


def _error(answer: _Answer) -> AdamixError:
    kind, what = _PROBLEMS.get(answer.problem or "", _PROBLEMS["fails"])
    where = f" (line {answer.line})" if answer.line else ""
    detail = f": {answer.detail}" if answer.detail else ""
    return kind(f"the chat template {what}{where}{detail}")
