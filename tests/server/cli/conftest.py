"""What the tests of `adamix predict` and `generate` share: servers that play, and a file of rows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from adamix_testing.label_server import LabelServer
from adamix_testing.predicting import Files, capitals
from adamix_testing.text_server import Request, Response, TextServer, said, words


@pytest.fixture
def server() -> Iterator[LabelServer]:
    """Answers each text with itself in capitals."""
    with LabelServer(capitals) as found:
        yield found


@pytest.fixture
def rows(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def echo() -> Iterator[TextServer]:
    """Writes what it was asked with, in capitals, a letter at a time if it is short."""

    def answer(request: Request) -> Iterator[Response]:
        text = said(request).upper()
        step = 1 + len(text) // 100
        return words(*(text[i : i + step] for i in range(0, len(text), step)))

    with TextServer(answer) as server:
        yield server
