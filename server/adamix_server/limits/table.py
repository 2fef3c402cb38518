"""How a limit is said: its value, what is refused beyond it, and the test that meets it, in one line of one table."""

from dataclasses import dataclass
from typing import Literal, TypeVar

from adamix.errors import Code

Unit = Literal["", "bytes", "s"]
N = TypeVar("N", int, float)


@dataclass(frozen=True)
class Limit:
    """One line of the table.

    Attributes:
        what: is limited.
        text: the limit, for people.
        code, reason: what is answered beyond it; no code where the transport or nobody answers.
        proof: the test that meets it exactly, as `path below tests/::test_function`.
        note: what else a reader must know; stands after the reason.
    """

    what: str
    text: str
    code: Code | None
    reason: str
    proof: str
    note: str

    @property
    def beyond(self) -> str:
        """What is answered beyond the limit, for people."""
        answer = "" if self.code is None else self.code.name
        if self.reason not in ("", answer):
            answer += f" `{self.reason}`"
        return "; ".join(part for part in (answer, self.note) if part)


def to_text(value: float, unit: Unit) -> str:
    if unit == "bytes":
        for size, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
            if value % size == 0:
                return f"{int(value) // size:,} {name}"
    return f"{int(value) if value == int(value) else value:,} {unit}".rstrip()


class Chapter:
    """Some lines of the table, in the order in which they were said."""

    def __init__(self) -> None:
        self.rows: list[Limit] = []

    def said(self, what: str, text: str, code: Code | None, reason: str = "", *, proof: str, note: str = "") -> None:
        """A line for a limit that is not one number, or whose constant belongs to a lower floor."""
        self.rows.append(Limit(what, text, code, reason, proof, note))

    def limit(
        self,
        value: N,
        unit: Unit,
        what: str,
        code: Code | None,
        reason: str = "",
        *,
        proof: str,
        note: str = "",
        more: str = "",
    ) -> N:
        """A line, and its value as the constant; `more` is said after the number."""
        self.said(what, to_text(value, unit) + more, code, reason, proof=proof, note=note)
        return value
