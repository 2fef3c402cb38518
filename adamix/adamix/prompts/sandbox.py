"""Renders chat templates of strangers, in a process of its own that may die of one. Run by its path; see `chat.py`.

The sandbox of jinja2 keeps a template from attributes and mutations, and nothing keeps one from taking time and memory:
an expression can be a single call into C that lasts for hours. So the operating system does, in three steps. After so
much CPU time a signal raises `_OutOfTime` wherever Python code runs; a moment later another one, which no code handles,
ends the process; and its address space is limited all along. It can open no file and write none.

Set up as transformers sets up its own (5.23), so that what `apply_chat_template` renders comes out the same; templates
that load others are refused when they are compiled. Imports neither the rest of this project nor anything that could
take longer to start than a caller wants to wait.

Its one argument is `Limits` as JSON. A message on stdin or stdout is its length, 4 bytes big-endian, and JSON: an
`Order`, an `Answer`.
"""

import json
import os
import resource
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, BinaryIO, Literal, NotRequired, TypedDict, TypeVar

# What jinja2 loads when it needs it, and could not later.
import jinja2.debug  # noqa: F401
from jinja2 import Template, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError, TemplateError, UndefinedError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# CPU seconds: how long after a limit the process is ended, and between the exceptions until then.
_GRACE_S = 0.05
_AGAIN_S = 0.01
# Beyond what the process has when it begins. A compiled template takes up to 400 times the memory of its text.
_MEMORY_BYTES = 256 << 20
_MAX_COMPILED = 64
_MAX_COMPILED_LENGTH = 256 << 10
_MAX_DETAIL = 200
_LENGTH_BYTES = 4
# Of Linux: pages of memory that this process has.
_STATUS = Path("/proc/self/statm")
T = TypeVar("T")

# What a `Template` cannot be used for at all, then what it cannot do with these messages.
Problem = Literal["syntax", "loads", "involved", "refused", "time", "memory", "output", "unsafe", "undefined", "fails"]
_LOADS = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)


class Limits(TypedDict):
    """CPU seconds to compile and to render a template, and bytes of UTF-8 that it may make."""

    compile_s: float
    render_s: float
    max_bytes: int


class Order(TypedDict):
    """What to render; `variables` of None compiles the template only."""

    template: str
    variables: dict[str, Any] | None


class Answer(TypedDict):
    """A text, or what kept it from being made: at which line of the template, and in which words of its author."""

    text: NotRequired[str]
    problem: NotRequired[Problem]
    line: NotRequired[int]
    detail: NotRequired[str]


class _OutOfTime(BaseException):
    """Of no class that jinja2 or a filter would catch."""


class _Refused(TemplateError):
    """A template's own `raise_exception`."""


class _Failed(Exception):
    def __init__(self, problem: Problem, line: int = 0, detail: str = "") -> None:
        super().__init__(problem)
        self.answer = Answer(problem=problem, line=line, detail=_printable(detail))


class _Generation(Extension):
    """`{% generation %}` marks what the assistant said, for training; here it is a block of text."""

    tags = {"generation"}  # noqa: RUF012 - declared so by its class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Macro) -> str:
        return caller()


class _Dict:
    """`dict` as a template has it: an instance, through which no type can be reached."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may name an attribute `self`
        this, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(this, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class Renderer:
    """Compiles and renders. The 64 templates that were used last stay compiled, fewer where they are long."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._environment = _environment()
        self._compiled: OrderedDict[str, Template] = OrderedDict()

    def answer(self, order: Order) -> Answer:
        """What becomes of an order. Takes no more time than it may, or the process with it."""
        try:
            template = self._template(order["template"])
            variables = order["variables"]
            return Answer(text="" if variables is None else self._render(template, variables))
        except _Failed as failed:
            return failed.answer

    def _template(self, source: str) -> Template:
        known = self._compiled.get(source)
        if known is not None:
            self._compiled.move_to_end(source)
            return known
        try:
            template = _timed(self._limits["compile_s"], lambda: self._compile(source))
        except TemplateSyntaxError as error:
            raise _Failed("syntax", error.lineno, error.message or "") from None
        except _Failed:
            raise
        except MemoryError:
            raise _Failed("memory") from None
        except (_OutOfTime, Exception):  # noqa: BLE001 - limits of Python's own compiler have errors of many classes
            raise _Failed("involved") from None
        self._compiled[source] = template
        while len(self._compiled) > _MAX_COMPILED or sum(map(len, self._compiled)) > _MAX_COMPILED_LENGTH:
            self._compiled.popitem(last=False)
        return template

    def _compile(self, source: str) -> Template:
        tree = self._environment.parse(source)
        for node in tree.find_all(_LOADS):
            raise _Failed("loads", node.lineno)
        return self._environment.from_string(tree)

    def _render(self, template: Template, variables: dict[str, Any]) -> str:
        limits = self._limits
        try:
            return _timed(limits["render_s"], lambda: _joined(template, variables, limits["max_bytes"]))
        except _Failed:
            raise
        except (_OutOfTime, Exception) as error:  # noqa: BLE001 - a template raises whatever it likes
            problem, line = _problem(error), _line(template, error.__traceback__)
            detail = error.message or "" if isinstance(error, _Refused) else ""
        # Not in the handler: the error holds all that the template made.
        raise _Failed(problem, line, detail)


def _joined(template: Template, variables: dict[str, Any], room: int) -> str:
    parts: list[bytes] = []
    for part in template.root_render_func(template.new_context(variables)):
        # More characters are more bytes: a huge part is not copied to be told so.
        data = part.encode() if len(part) <= room else b""
        room -= len(data) or len(part)
        if room < 0:
            raise _Failed("output")
        parts.append(data)
    return b"".join(parts).decode()


def _problem(error: BaseException) -> Problem:
    if isinstance(error, _OutOfTime):
        return "time"
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, SecurityError):
        return "unsafe"
    if isinstance(error, UndefinedError):
        return "undefined"
    return "refused" if isinstance(error, _Refused) else "fails"


def _line(template: Template, trace: TracebackType | None) -> int:
    """The line of a template where an error came from; 0 if it cannot be told."""
    line = 0
    code = template.root_render_func.__globals__
    while trace is not None:
        # An exception that a signal raised may stand between two lines, and has None.
        if trace.tb_frame.f_globals is code and trace.tb_lineno:
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return line


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


def _raise_exception(message: str) -> None:
    raise _Refused(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # noqa: DTZ005 - the date where the server is, as transformers has it


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a name in a namespace begins with an underscore")


def _printable(text: str) -> str:
    shown = "".join(letter if letter.isprintable() else " " for letter in text[:_MAX_DETAIL])
    return shown.encode(errors="replace").decode()


_is_limited = False


def _timed(cpu_s: float, call: Callable[[], T]) -> T:
    """Raise `_OutOfTime` after so much CPU time, again and again until it is heard; then end the process."""
    global _is_limited  # noqa: PLW0603 - a signal's handler has nothing else
    _is_limited = True
    signal.setitimer(signal.ITIMER_PROF, cpu_s + _GRACE_S)
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s, _AGAIN_S)
    try:
        try:
            return call()
        finally:
            _is_limited = False
    finally:  # twice, because the signal may come between the call's end and that line
        _is_limited = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _on_time(_signal: int, _frame: FrameType | None) -> None:
    if _is_limited:
        raise _OutOfTime


def _lower_limits() -> None:
    """Of this process for good; what rendering needs was loaded before."""
    if _STATUS.exists():
        memory = int(_STATUS.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + _MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))


# Uses what Python and jinja2 load when it is first used: later they could not.
_FIRST = (
    "{{ 'a\\n'|pprint ~ lipsum(1, false, 1, 2) ~ strftime_now('%d %b %Y') ~ messages|tojson(indent=1) }}"
    "{{ '<b>a b'|striptags|wordwrap(1) }}"
)


def _read(source: BinaryIO) -> Order | None:
    length = source.read(_LENGTH_BYTES)
    if len(length) < _LENGTH_BYTES:
        return None
    order: Order = json.loads(source.read(int.from_bytes(length, "big")))
    return order


def _write(target: BinaryIO, answer: Answer) -> None:
    data = json.dumps(answer).encode()
    target.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
    target.flush()


def main() -> None:
    """Say that all is ready, by an answer nobody asked for; then answer orders until there are no more."""
    signal.signal(signal.SIGVTALRM, _on_time)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    limits: Limits = json.loads(sys.argv[1])
    renderer = Renderer(limits)
    first = renderer.answer(Order(template=_FIRST, variables={"messages": []}))
    _lower_limits()
    _write(sys.stdout.buffer, first)
    while (order := _read(sys.stdin.buffer)) is not None:
        _write(sys.stdout.buffer, renderer.answer(order))


if __name__ == "__main__":
    main()
