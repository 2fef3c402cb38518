"""The processes of a running server, found by what they were started with; their processor time and their memory.

Reads `/proc`, and so knows servers of any version: of a server only the modules that its children run.
"""

import itertools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from adamix.errors import Unavailable

Role = Literal["engine", "front ends"]
# By the module that a process was started with.
ROLES: dict[str, Role] = {"adamix_server.engine": "engine", "adamix_server.frontend": "front ends"}


@dataclass(frozen=True)
class Process:
    """A running process: its number, that of the one that started it, and its command line."""

    pid: int
    parent: int
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Processes:
    """The processes of one server that answer calls. `name` says whose it is."""

    name: str
    pids: Mapping[Role, tuple[int, ...]]

    @classmethod
    def of(cls, name: str, supervisor: int, running: Iterable[Process], front_ends: int) -> Self:
        """Those that the supervisor has started, by the modules they run.

        Raises:
            Unavailable: there are not one engine and so many front ends.
        """
        pids: dict[Role, list[int]] = {"engine": [], "front ends": []}
        for process in running:
            role = _role(process.arguments)
            if process.parent == supervisor and role is not None:
                pids[role].append(process.pid)
        counts = (len(pids["engine"]), len(pids["front ends"]))
        if counts != (1, front_ends):
            raise Unavailable(
                f"the server of {name} runs {counts[0]} engines and {counts[1]} front ends, not 1 and {front_ends}"
            )
        return cls(name, {role: tuple(found) for role, found in pids.items()})

    def cpu_s(self) -> dict[Role, float]:
        """Processor time so far. Raises Unavailable when one of them has ended."""
        try:
            return {role: sum(map(cpu_s, pids)) for role, pids in self.pids.items()}
        except OSError:
            raise Unavailable(f"a process of the server of {self.name} has ended; see its log") from None

    def resident_bytes(self, role: Role) -> int:
        """Memory that is theirs or shared with others. Raises Unavailable when one of them has ended."""
        try:
            return sum(map(_resident_bytes, self.pids[role]))
        except OSError:
            raise Unavailable(f"a process of the server of {self.name} has ended; see its log") from None


def running_processes() -> list[Process]:
    """All processes of the machine that may be looked at."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (directory / "cmdline").read_bytes().decode(errors="replace").split("\0")
            parent = parent_of((directory / "stat").read_text(errors="replace"))
        except OSError:
            continue  # it has ended, or is another user's
        found.append(Process(int(directory.name), parent, tuple(arguments)))
    return found


def parent_of(stat: str) -> int:
    """Of the text of `/proc/PID/stat`: the second field after the name, which may hold blanks and brackets."""
    return int(stat.rpartition(")")[2].split()[1])


def cpu_s(pid: int) -> float:
    """User and system time of all threads of a process, in seconds. Raises OSError when it has ended.

    What `/proc/PID/stat` tells in ticks of 10 ms, to the nanosecond: the clock that clock_getcpuclockid(3) names, which
    Python has for threads alone.
    """
    return time.clock_gettime(~pid << 3 | 2)


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _role(arguments: Sequence[str]) -> Role | None:
    """Of `python … -m MODULE …`; None of anything else."""
    modules = [module for flag, module in itertools.pairwise(arguments) if flag == "-m"]
    return ROLES.get(modules[0]) if modules else None
