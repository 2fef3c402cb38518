"""`adamix predict` in a test: as a person types it, and over a file of rows."""

import csv
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from adamix.errors import (
    InvalidRequest,
)
from adamix_server.cli.main import app
from adamix_testing.label_server import Answer, Asked, label

# Where nothing listens.
NOWHERE = "127.0.0.1:1"
TOO_LONG = InvalidRequest("text has 9 tokens, the task's limit is 8", reason="TEXT_TOO_LONG", field="inputs[0].text")


def run(*arguments: object, code: int = 0, stdin: str | bytes | None = None) -> Any:
    """The result of `adamix predict …` that ends with this code."""
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)], input=stdin)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def capitals(item: Asked) -> Answer:
    return label(item.text.upper())


class Files:
    """A file of rows `in.csv` with a number and a text each, and the file of its answers."""

    def __init__(self, directory: Path) -> None:
        self.file, self.out = directory / "in.csv", directory / "out.csv"
        self.journal = directory / "out.csv.partial"

    def write(self, *texts: str) -> None:
        with self.file.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "n"), *((text, number) for number, text in enumerate(texts))])

    def run(self, address: str, *more: object, code: int = 0) -> Any:
        return run("t", "--file", self.file, "--out", self.out, "--server", address, *more, code=code)

    @property
    def rows(self) -> list[dict[str, str]]:
        with self.out.open(newline="") as file:
            return list(csv.DictReader(file))

    @property
    def labels(self) -> list[str]:
        return [row["label"] for row in self.rows]

    @property
    def found(self) -> list[str]:
        """What is in the directory."""
        return sorted(path.name for path in self.file.parent.iterdir())

    def num_kept(self) -> int:
        """Rows in the journal, which begins with a line of its own."""
        return self.journal.read_bytes().count(b"\n") - 1 if self.journal.exists() else 0
