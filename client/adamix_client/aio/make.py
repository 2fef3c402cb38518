"""Makes the methods of `AsyncClient` of those of `Client`, so that the two cannot differ.

Every method is a request, a way to make a call and a way to read its answer; only the way differs: here it is awaited.
`python -m adamix_client.aio.make` writes the modules, which are part of the repository; a test holds that they are what
this makes. Needs ruff, which puts them in form.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

MODULES = ("adapters", "administration", "client", "inference")

_HERE = Path(__file__).parent
_OURS = "Client|Inference|Adapters|Administration|Calls|Connection|Watching"
_CODE = (
    (r"^from adamix_client\.(adapters|administration|calling|inference|watching) ", r"from adamix_client.aio.\1 "),
    (
        r"^from adamix_client\.connection import KEEPALIVE_S, KEEPALIVE_TIMEOUT_S, Connection$",
        """from adamix_client.aio.connection import Connection
from adamix_client.connection import KEEPALIVE_S, KEEPALIVE_TIMEOUT_S""",
    ),
    (rf"\b({_OURS})\b(?!\.)", r"Async\1"),
    (r"\bGenerator\[(.+?), None, None\]", r"AsyncGenerator[\1, None]"),
    (r"^(from collections\.abc import .*)\bGenerator\b", r"\1AsyncGenerator, AsyncIterable"),
    (r"\bIterable\[(Text|StreamInput|Input)\]", r"Iterable[\1] | AsyncIterable[\1]"),
    (r"\bwith closing\((self|begin)\b", r"async with aclosing(\1"),
    (r"^from contextlib import closing$", "from contextlib import aclosing, closing"),
    (r"\bfor (\w+|\w+, \w+) in (pages|answers|messages)\b", r"async for \1 in \2"),
    (r"\bself\._calls\.(ask|upload|wait_until_serving|close)\(", r"await self._calls.\1("),
    (r"\bself\.(predict|delete_task|delete_version|pin|close)\(", r"await self.\1("),
    (r"\b__(enter|exit)__\b", r"__a\1__"),
)
_TOLD = (
    (
        r"^`adamix_client\.aio\.(\w+)` is made of this file: see `adamix_client\.aio\.make`\.$",
        r"Made of `adamix_client.\1`, by `adamix_client.aio.make`.",
    ),
    (r"^Synchronous and safe to share between threads\.", "For tasks of one event loop."),
    (r"`Client`", "`AsyncClient`"),
    (r">>> (\w+(?:, \w+)*) = client\.", r">>> \1 = await client."),
    (r">>> client\.", ">>> await client."),
    (r"(>>> )?\bfor (\w+) in client\.", r"\1async for \2 in client."),
)
_DEFINITION = re.compile(r"^    def (\w+)\(", re.MULTILINE)


def asynchronous(module: str) -> str:
    """The source of `adamix_client.aio.{module}`."""
    source = (_HERE.parent / f"{module}.py").read_text(encoding="utf-8")
    told = _told_lines(source)
    lines = [
        _changed(line, _TOLD if number in told else _CODE) for number, line in enumerate(source.split("\n"), start=1)
    ]
    # What waits is a coroutine, or a generator of its own kind; and so are the forms that it is declared in.
    starts = [number for number, line in enumerate(lines) if _DEFINITION.match(line)]
    waits = set()
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        code = (line for number, line in enumerate(lines[start:end], start=start + 1) if number not in told)
        if _name(lines[start]) == "__aenter__" or any(re.search(r"\b(await|async) ", line) for line in code):
            waits.add(_name(lines[start]))
    for start in starts:
        if _name(lines[start]) in waits:
            lines[start] = lines[start].replace("    def ", "    async def ", 1)
    return _in_form("\n".join(lines))


def main() -> None:
    for module in MODULES:
        (_HERE / f"{module}.py").write_text(asynchronous(module), encoding="utf-8")


def _changed(line: str, substitutes: tuple[tuple[str, str], ...]) -> str:
    for pattern, substitute in substitutes:
        line = re.sub(pattern, substitute, line)
    return line


def _name(line: str) -> str:
    found = _DEFINITION.match(line)
    return "" if found is None else found[1]


def _told_lines(source: str) -> set[int]:
    """The lines of docstrings, from 1."""
    found: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            found.update(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return found


def _in_form(source: str) -> str:
    for arguments in (["check", "--fix", "--quiet", "--select", "I,F401,RUF100"], ["format", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(_HERE / "client.py"), "-"]
        source = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    return source


if __name__ == "__main__":
    main()
