"""`adamix predict` as a person types it, against answers that are played."""

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from adamix_protos.v1 import inference_pb2
from adamix_server.cli.main import app
from adamix_server.cli.rows import asking
from adamix_testing.label_server import VERSION, Answer, Asked, LabelServer, label
from adamix_testing.predicting import NOWHERE, TOO_LONG, Files, capitals, run


def test_texts_are_a_table_or_a_document(server: LabelServer) -> None:
    result = run("t", "ab", "c", "--server", server.address)
    assert "AB" in result.stdout
    assert "0.750" in result.stdout
    document = json.loads(
        run("t", "ab", "--truncate", "--version", VERSION, "--json", "--server", server.address).stdout
    )
    (prediction,) = document["predictions"]
    assert prediction["classification"] == {"label": "AB", "label_id": 0, "scores": [0.75, 0.25]}
    assert server.asked[-1].version == VERSION
    assert server.asked[-1].truncation == inference_pb2.TRUNCATION_RIGHT


def test_a_text_that_fails_is_exit_code_1(server: LabelServer) -> None:
    def picky(item: Asked) -> Answer:
        if item.text == "long":
            raise TOO_LONG
        return capitals(item)

    server.answer = picky
    assert "tokens" in run("t", "long", "b", "--server", server.address, code=1).stdout
    assert "error" in run("t", "long", "b", "--json", "--server", server.address, code=1).stdout


def test_a_terminal_is_not_steered_by_an_answer(server: LabelServer) -> None:
    server.answer = lambda item: label("\x1b[2J")
    result = run("t", "\x1b]0;x", "--server", server.address)
    assert "\x1b" not in result.stdout
    assert "\\x1b[2J" in result.stdout


def test_lines_of_stdin_are_lines_of_stdout(server: LabelServer) -> None:
    result = run("t", "-", "--server", server.address, stdin=b"ab\r\n\n\xff\nlast", code=1)
    assert result.stdout == "AB\t0.75\n\n\nLAST\t0.75\n"
    assert result.stderr == "line 2: TEXT_EMPTY: the text is empty\nline 3: TEXT_INVALID: the text is not a text\n"
    many = "".join(f"{number}\n" for number in range(200))
    assert run("t", "-", "--server", server.address, stdin=many).stdout == "".join(f"{n}\t0.75\n" for n in range(200))


def test_a_label_is_not_two_lines_nor_two_cells(server: LabelServer, rows: Files) -> None:
    server.answer = lambda item: label("a\n\tb\r")
    assert run("t", "-", "--server", server.address, stdin="x").stdout == "a\\n\\tb\\r\t0.75\n"
    rows.write("x", "y")
    rows.run(server.address)
    assert rows.labels == ["a\n\tb\r"] * 2


def test_what_no_client_can_say_is_told_in_a_line(server: LabelServer) -> None:
    for command in (["show", "\udcff"], ["predict", "t", "x", "--server", "\udcff:1"], ["delete", "-y", "\udcff"]):
        result = CliRunner().invoke(app, command, env={"ADAMIX_SERVER": server.address})
        assert (result.exit_code, result.stderr) == (2, f"error: {command[-1]!r} is not valid UTF-8\n"), command
    assert "commands speak gRPC" in run("t", "x", "--server", "http://127.0.0.1:1", code=2).stderr


def test_whoever_types_has_the_answer_before_the_next_line(
    server: LabelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []

    def typed() -> Iterator[asking.Row]:
        for number, text in enumerate("abc"):
            told.append(len(server.asked))
            yield asking.Row(f"line {number}", text)

    from adamix_client import Client
    from adamix_server.cli import predict

    monkeypatch.setattr(predict, "_lines", typed)
    with Client(server.address) as client:
        answers = list(predict._one_by_one(client, asking.Question(task="t")))
    assert [answer["label"] for _, answer in answers] == ["A", "B", "C"]
    assert told == [0, 1, 2]


def test_lines_of_stdin_as_a_document(server: LabelServer) -> None:
    document = json.loads(run("t", "-", "--json", "--server", server.address, stdin="a\nb\n").stdout)
    assert [found["classification"]["label"] for found in document["predictions"]] == ["A", "B"]
    assert "line 1" in run("t", "-", "--json", "--server", NOWHERE, stdin=b"\xff\n", code=1).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["t"],
        ["t", "-", "a"],
        ["t", "a", "--out", "o.csv"],
        ["t", "a", "--column", "x"],
        ["t", "a", "--pair-column", "x"],
        ["t", "a", "--format", "csv"],
        ["t", "a", "--file", "in.csv", "--out", "o.csv"],
        ["t", "--file", "in.csv"],
        ["t", "--file", "in.csv", "--out", "o.jsonl"],
        ["t", "--file", "in.csv", "--out", "o.csv", "--concurrency", "0"],
        ["t", "--file", "in.csv", "--out", "o.csv", "--concurrency", "65"],
        ["t", "--file", "in.csv", "--out", "o.csv", "--on-error", "ignore"],
        ["t", "--file", "in.csv", "--out", "o.csv", "--format", "xml"],
    ],
)
def test_a_mistake_is_told_before_any_connection(arguments: list[str]) -> None:
    result = run(*arguments, "--server", NOWHERE, code=2)
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""
