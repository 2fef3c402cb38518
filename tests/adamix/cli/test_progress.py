"""Progress in a pipe is a line every ten seconds; Ctrl-C once is a wish; nothing a stranger wrote steers a terminal."""

import io
import signal
import sys
import time

import pytest
from rich.table import Table

from adamix.cli.interrupts import finishing
from adamix.cli.progress import progress
from adamix.cli.terminal import Screen, exit_codes, visible
from adamix.errors import Cancelled


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_pipe_gets_a_line_every_ten_seconds(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("evaluating", total=2_000) as shown:
        for _ in range(25):
            clock[0] += 1
            shown.advance(40, note="loss 0.5")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "evaluating: 400/2,000, eta 0:40, loss 0.5",
        "evaluating: 800/2,000, eta 0:30, loss 0.5",
    ]


def test_short_work_says_nothing_in_a_pipe(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("copying") as shown:
        clock[0] += 9
        shown.update(3, 4)
    assert capsys.readouterr() == ("", "")


def test_without_a_total_there_is_no_eta(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("reading") as shown:
        clock[0] += 3_700
        shown.update(5)
        clock[0] += 3_700
        shown.update(10, 20)
    assert capsys.readouterr().err == "reading: 5\nreading: 10/20, eta 2:03:20\n"


def test_a_terminal_has_a_bar_from_the_first_count_on(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("merging", total=4) as shown:
        assert terminal.getvalue() == ""
        shown.advance(note="\x1b[2J")
    assert "merging" in terminal.getvalue()
    assert "1/4" in terminal.getvalue()
    assert "\x1b[2J" not in terminal.getvalue()


def test_control_characters_are_shown_and_not_acted_on() -> None:
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible("\x1b]0;title\x07\x9b2J\x7f") == "\\x1b]0;title\\x07\\x9b2J\\x7f"
    assert visible("abc\u202egpj.exe\u2066") == "abc\\u202egpj.exe\\u2066"
    screen = Screen(file=io.StringIO(), force_terminal=True, width=60, highlight=False)
    table = Table("label")
    table.add_row("\x1b[31mred\r")
    screen.print(table)
    screen.print("\x1b]0;x\x07")
    written = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "\\x1b[31mred\\x0d" in written
    assert "\\x1b]0;x\\x07" in written


def test_ctrl_c_once_is_a_wish_and_twice_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with finishing("writing what is there") as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Cancelled("stopped in row 3; the same command goes on")])
def test_an_interrupted_command_exits_with_130(error: BaseException) -> None:
    import typer

    with pytest.raises(typer.Exit) as exit_, exit_codes():
        raise error
    assert exit_.value.exit_code == 130
