"""The table of kernels, plans and targets: what each takes, what is wrong with it, and which sources it speaks of."""

import hashlib
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adamix_kernels
from adamix_kernels.aot.resources import Resources, problems, resources
from adamix_kernels.gpu.specimen import Specimen, compile_specimen

_PACKAGE = Path(adamix_kernels.__file__).parent


@dataclass(frozen=True)
class Row:
    """One specimen on one target; `found` is None where it does not compile, which then is its problem."""

    kernel: str
    target: str
    plan: str
    found: Resources | None
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.kernel}, {self.plan}, {self.target}"

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"kernel": self.kernel, "target": self.target, "plan": self.plan}
        if self.found is not None:
            for number in ("registers", "spill_bytes", "shared_bytes", "mma"):
                row[number] = getattr(self.found, number)
        return row | ({"problems": list(self.problems)} if self.problems else {})


@dataclass(frozen=True)
class Choice:
    """Which specimens to look at.

    Attributes:
        full: all of them; otherwise the first of every kernel, which is its most usual plan.
        only: those whose name has this in it; a name is the kernel's and the plan's, joined by ", ".
    """

    full: bool = False
    only: str = ""

    def of(self, target: str) -> list[Specimen]:
        from adamix_kernels.aot.specimens import specimens

        named = [each for each in specimens(target) if self.only in f"{each.kernel}, {each.plan}"]
        if self.full:
            return named
        first: dict[str, Specimen] = {}
        for specimen in named:
            first.setdefault(specimen.kernel, specimen)
        return list(first.values())


def examine(specimen: Specimen, target: str) -> Row:
    """Compile a specimen and judge it."""
    from triton.errors import TritonError

    try:
        found = resources(compile_specimen(specimen, target), target)
    except (TritonError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Row(specimen.kernel, target, specimen.plan, None, (f"does not compile: {lines[-1]}",))
    return Row(specimen.kernel, target, specimen.plan, found, tuple(problems(specimen, found, target)))


def rows(choice: Choice, targets: Sequence[str], processes: int) -> Iterator[Row]:
    """The rows in a fixed order, compiled side by side.

    Raises:
        ValueError: there is nothing to compile.
    """
    # A specimen is known by its place, because a kernel cannot be sent from process to process.
    places = [(choice, target, index) for target in targets for index in range(len(choice.of(target)))]
    if not places:
        raise ValueError("no specimen has such a name")
    # Not forked: the compiler has threads of its own.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(places)), spawn, initializer=_leave_interrupts_to_parent) as pool:
        try:
            yield from pool.map(_row_at, places)
        finally:
            pool.shutdown(cancel_futures=True)


def sources_digest() -> str:
    """sha256 over the files a row depends on: the kernels, the plans, and what makes specimens of them."""
    kernels = [path for path in _PACKAGE.glob("gpu/*.py") if b"@triton.jit" in path.read_bytes()]
    digest = hashlib.sha256()
    for path in sorted(
        [*kernels, *_PACKAGE.glob("plans/*.json"), _PACKAGE / "plans.py", _PACKAGE / "aot" / "specimens.py"]
    ):
        digest.update(path.relative_to(_PACKAGE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _row_at(place: tuple[Choice, str, int]) -> Row:
    choice, target, index = place
    return examine(choice.of(target)[index], target)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
