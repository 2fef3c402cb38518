"""`adamix predict --file`: rows that are answered into another file, and gone on with."""

import json
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adamix.errors import (
    AdamixError,
    FailedPrecondition,
    InternalError,
    InvalidRequest,
    NotFound,
    Overloaded,
    Unavailable,
)
from adamix_protos.v1 import inference_pb2
from adamix_server.cli.rows import asking
from adamix_server.limits import files
from adamix_testing.label_server import VERSION, Answer, Asked, LabelServer, label
from adamix_testing.predicting import NOWHERE, TOO_LONG, Files, capitals, run
from adamix_testing.servers import eventually


def test_rows_come_back_in_order_with_their_answers(server: LabelServer, rows: Files) -> None:
    def shuffled(item: Asked) -> Answer:
        # The later it was asked for, the sooner it is there.
        if int(item.text) % 64 == 0:
            time.sleep(0.05 / (1 + int(item.text) // 64))
        return label(f"<{item.text}>")

    server.answer = shuffled
    rows.write(*map(str, range(300)))
    result = rows.run(server.address, "--json")
    assert json.loads(result.stdout) == {"rows": 300, "resumed": 0, "failed": 0, "errors": {}}
    assert rows.rows == [
        {"text": str(n), "n": str(n), "label": f"<{n}>", "score": "0.75", "error": ""} for n in range(300)
    ]
    assert sorted(server.calls) == [44, 64, 64, 64, 64]
    assert rows.found == ["in.csv", "out.csv"]


def test_what_is_asked_about_a_row(server: LabelServer, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a", "text_pair": "b"}\n')
    server.answer = lambda item: label("x")
    out = tmp_path / "out.jsonl"
    run(
        "t",
        "--file",
        tmp_path / "in.jsonl",
        "--out",
        out,
        "--truncate",
        "--version",
        VERSION,
        "--server",
        server.address,
    )
    (asked,) = server.asked
    assert (asked.task, asked.version, asked.pair.first, asked.pair.second) == ("t", VERSION, "a", "b")
    assert asked.truncation == inference_pb2.TRUNCATION_RIGHT
    assert json.loads(out.read_text()) == {"text": "a", "text_pair": "b", "label": "x", "score": 0.75}


def test_so_many_calls_are_under_way_and_no_more(server: LabelServer, rows: Files) -> None:
    assert files.MAX_CONCURRENCY == 64
    everybody = threading.Barrier(3)

    def together(request: inference_pb2.PredictRequest) -> None:
        everybody.wait(20)

    server.refuse = together
    rows.write(*map(str, range(64 * 9)))
    rows.run(server.address, "--concurrency", 3)
    assert server.most == 3
    server.refuse = lambda request: None
    rows.run(server.address, "--concurrency", 64, "--overwrite")


def test_rows_are_read_as_there_is_room_for_their_answers(server: LabelServer) -> None:
    read = 0

    def endless() -> Iterator[asking.Row]:
        nonlocal read
        while True:
            read += 1
            yield asking.Row(f"line {read}", "a")

    from adamix_client import Client

    with Client(server.address) as client:
        answers = asking.Question(task="t").answers(client, endless(), 2)
        for number in range(1, 20):
            assert len([next(answers) for _ in range(64)]) == 64
            assert read <= 64 * (number + 2)
        answers.close()


def test_large_rows_are_fewer_a_call(server: LabelServer, rows: Files) -> None:
    server.answer = lambda item: label("x")
    rows.write(*["a" * (64 << 10)] * 70)
    rows.run(server.address)
    assert sorted(server.calls) == [7, 63]


def test_a_row_that_is_refused_has_an_error_and_its_line(server: LabelServer, rows: Files) -> None:
    def picky(item: Asked) -> Answer:
        if item.text == "long":
            raise TOO_LONG
        if item.text == "bug":
            raise InternalError("internal error, id=5")
        return capitals(item)

    server.answer = picky
    rows.write("a", "long", "", "bug", "b")
    result = rows.run(server.address, "--json", code=1)
    errors = {"TEXT_TOO_LONG": 1, "TEXT_EMPTY": 1, "INTERNAL": 1}
    assert json.loads(result.stdout) == {"rows": 5, "resumed": 0, "failed": 3, "errors": errors}
    assert "in.csv:3: TEXT_TOO_LONG: the text has 9 tokens" in result.stderr
    assert "in.csv:4: TEXT_EMPTY: the text is empty\n" in result.stderr
    assert rows.labels == ["A", "", "", "", "B"]
    assert rows.rows[3]["error"] == "INTERNAL: internal error, id=5"
    # What cannot be asked is not asked.
    assert [item.text for item in server.asked] == ["a", "long", "bug", "b"]


def test_rows_that_fail_all_alike_fail_each(server: LabelServer, rows: Files) -> None:
    def refuse(_: Asked) -> Answer:
        raise TOO_LONG

    server.answer = refuse
    rows.write(*["a"] * 20)
    result = rows.run(server.address, code=1)
    assert [row["error"].partition(":")[0] for row in rows.rows] == ["TEXT_TOO_LONG"] * 20
    assert len(result.stderr.splitlines()) == 12
    assert "in.csv:3: TEXT_TOO_LONG: the text failed as that of in.csv:2 did: that of in.csv:2 has 9" in result.stderr
    assert "further errors stand in the file alone" in result.stderr
    assert list(rows.rows[0]) == ["text", "n", "label", "score", "error"]


def test_a_file_whose_name_is_not_utf_8(server: LabelServer, rows: Files) -> None:
    def refuse(_: Asked) -> Answer:
        raise TOO_LONG

    server.answer = refuse
    rows.file = rows.file.with_name("in\udcff.csv")
    rows.write("a", "b")
    rows.run(server.address, code=1)
    assert "the text failed as that of in?.csv:2 did" in rows.rows[1]["error"]


def test_stopping_at_an_error(server: LabelServer, rows: Files) -> None:
    rows.write("a", "b", "", "d")
    result = rows.run(server.address, "--on-error", "stop", code=1)
    assert "in.csv:4: TEXT_EMPTY: the text is empty" in result.stderr
    assert "2 of 4 rows are answered and kept in out.csv.partial" in result.stderr
    assert not rows.out.exists()
    rows.run(server.address, code=1)
    assert rows.labels == ["A", "B", "", "D"]
    assert [item.text for item in server.asked].count("a") == 1


@pytest.mark.parametrize(
    "error",
    [
        Unavailable("no server", reason="DRAINING"),
        NotFound("task not found", reason="TASK_NOT_FOUND"),
        FailedPrecondition("this task generates text; call Generate", reason="WRONG_HEAD"),
        InvalidRequest("not a digest", reason="INVALID_DIGEST", field="inputs[0].version"),
    ],
)
def test_what_is_every_rows_error_ends_it_and_the_same_command_goes_on(
    error: AdamixError, server: LabelServer, rows: Files
) -> None:
    def breaks(item: Asked) -> Answer:
        if item.text == "70":
            raise error
        return capitals(item)

    server.answer = breaks
    rows.write(*map(str, range(100)))
    result = rows.run(server.address, "--concurrency", 1, code=1)
    assert (
        "70 of 100 rows are answered and kept in out.csv.partial; the same command goes on from there" in result.stderr
    )
    assert error.message in result.stderr
    assert not rows.out.exists()
    server.answer = capitals
    result = rows.run(server.address, "--json")
    assert json.loads(result.stdout) == {"rows": 100, "resumed": 70, "failed": 0, "errors": {}}
    assert rows.labels == [str(number) for number in range(100)]
    assert [item.text for item in server.asked].count("0") == 1
    assert not rows.journal.exists()


def test_an_error_before_any_answer_leaves_nothing(server: LabelServer, rows: Files) -> None:
    def unknown(_: Any) -> None:
        raise NotFound("task not found")

    server.refuse = unknown
    rows.write("a")
    assert rows.run(server.address, code=1).stderr.count("\n") == 1
    assert not rows.journal.exists()


def test_what_may_be_tried_again_is(server: LabelServer, rows: Files) -> None:
    tries: dict[str, int] = {}

    def busy(item: Asked) -> Answer:
        tries[item.text] = tries.get(item.text, 0) + 1
        if item.text == "b" and tries["b"] < 4:
            raise Overloaded("the queue is full", retry_after_s=0.001)
        return capitals(item)

    server.answer = busy
    rows.write("a", "b", "c")
    rows.run(server.address)
    assert rows.labels == ["A", "B", "C"]
    # Those that had their answer are not asked again.
    assert tries == {"a": 1, "b": 4, "c": 1}


def adamix(rows: Files, address: str, *more: object, **how: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "adamix_server", "predict", "t", "--file", rows.file, "--out", rows.out]
    command += ["--server", address, "--concurrency", "2", *more]
    return subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_is_gone_on_with(how: signal.Signals, server: LabelServer, rows: Files) -> None:
    """Of every row there is one in the end, whatever was done when the signal came."""
    goes_on = threading.Event()

    def halts(item: Asked) -> Answer:
        if item.text == "700":
            goes_on.wait(30)
        return capitals(item)

    server.answer = halts
    rows.write(*map(str, range(1000)))
    with adamix(rows, server.address) as process:
        eventually(lambda: rows.num_kept() == 640, "what is before the row is kept")
        process.send_signal(how)
        if how == signal.SIGINT:
            # It is a wish: the row that runs is waited for.
            assert process.stderr is not None
            assert process.stderr.readline() == b"ending with the answer that comes next; Ctrl-C again ends at once\n"
        goes_on.set()
        assert process.wait(20) == (130 if how == signal.SIGINT else -9)
        assert process.stderr is not None
        said = process.stderr.read()
    if how == signal.SIGINT:
        assert b"640 of 1,000 rows are answered and kept in out.csv.partial; the same command goes on" in said
        assert said.endswith(b"error: interrupted\n")
    assert not rows.out.exists()
    server.asked.clear()
    # As a power cut leaves it: a line that was not written to its end.
    with rows.journal.open("ab") as file:
        file.write(b'{"row": 5, "lab')
    assert json.loads(rows.run(server.address, "--json").stdout)["resumed"] == 640
    assert rows.labels == [str(number) for number in range(1000)]
    assert sorted(int(item.text) for item in server.asked) == list(range(640, 1000))


def test_what_goes_on_with_a_file_that_was_to_be_written_anew(server: LabelServer, rows: Files) -> None:
    rows.write("a", "b", "")
    stopped = rows.run(server.address, "--on-error", "stop", "--overwrite", code=1)
    assert "2 of 3 rows are answered" in stopped.stderr
    assert "the same command without --overwrite goes on" in stopped.stderr
    assert json.loads(rows.run(server.address, "--json", code=1).stdout)["resumed"] == 2


def test_a_kill_while_the_file_is_written_asks_nothing_again(
    server: LabelServer, rows: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adamix_server.cli.rows.delimited import Delimited

    def killed(self: Any, out: Path, *_: Any) -> None:
        out.write_bytes(b"text,n,lab")
        raise KeyboardInterrupt

    rows.write("a", "b")
    with monkeypatch.context() as patch:
        patch.setattr(Delimited, "write", killed)
        rows.run(server.address, code=130)
    assert rows.found == ["in.csv", "out.csv.partial"]
    rows.run(NOWHERE)
    assert rows.labels == ["A", "B"]


def test_a_full_disk_keeps_what_is_there(server: LabelServer, rows: Files) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    rows.write(*map(str, range(1000)))
    with adamix(rows, server.address, preexec_fn=limit) as process:
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert process.wait(20) == 1
    assert "error: no room for out.csv.partial; what is in it stays" in said
    assert "the same command goes on" in said
    kept = rows.num_kept()
    assert kept > 300
    assert json.loads(rows.run(server.address, "--json").stdout)["resumed"] == kept
    assert rows.labels == [str(number) for number in range(1000)]


def left_by(rows: Files, server: LabelServer) -> None:
    """A run that ended after the row `b`, of three."""
    rows.write("a", "b", "")
    rows.run(server.address, "--on-error", "stop", code=1)
    assert rows.num_kept() == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--truncate"], "truncate False, not True"),
        (["--version", VERSION], "version ''"),
        (["--column", "text"], "column None, not 'text'"),
    ],
)
def test_answers_to_another_question_are_not_gone_on_with(
    more: list[str], said: str, server: LabelServer, rows: Files
) -> None:
    left_by(rows, server)
    before = rows.journal.read_bytes()
    result = rows.run(NOWHERE, *more, code=1)
    assert said in result.stderr
    assert rows.journal.read_bytes() == before
    rows.run(server.address, "--overwrite", *more, code=1)
    assert rows.labels == ["A", "B", ""]


@pytest.mark.parametrize("texts", [["a", "X", ""], ["X", "b", ""], ["a"]])
def test_rows_that_have_changed_are_named(texts: list[str], server: LabelServer, rows: Files) -> None:
    left_by(rows, server)
    before = rows.journal.read_bytes()
    rows.write(*texts)
    result = rows.run(server.address, code=1)
    assert "has changed since" in result.stderr
    assert rows.journal.read_bytes() == before
    assert not rows.out.exists()


def test_rows_that_were_added_are_answered_too(server: LabelServer, rows: Files) -> None:
    left_by(rows, server)
    rows.write("a", "b", "c", "d")
    rows.run(server.address)
    assert rows.labels == ["A", "B", "C", "D"]


@pytest.mark.parametrize(
    "found", [b"hello", b"{}\n", b'{"format": "adamix-answers/1"}x\n', b'{"row": 1}\n', b"\0" * 99]
)
def test_a_file_of_something_else_is_left_as_it_is(found: bytes, rows: Files) -> None:
    rows.write("a")
    rows.journal.write_bytes(found)
    assert "name another --out" in rows.run(NOWHERE, code=1).stderr
    if found.startswith(b"{"):
        assert "name another --out" in rows.run(NOWHERE, "--overwrite", code=1).stderr
    assert rows.journal.read_bytes() == found


def test_files_that_cannot_be_used(server: LabelServer, rows: Files) -> None:
    rows.write("a")
    assert "is the file" in run("t", "--file", rows.file, "--out", rows.file, "--server", NOWHERE, code=2).stderr
    rows.out.mkdir()
    assert "no regular file" in rows.run(NOWHERE, code=2).stderr
    assert "--out . is" in run("t", "--file", rows.file, "--out", ".", "--format", "csv", code=2).stderr
    rows.out.rmdir()
    rows.out.write_text("mine")
    assert "--overwrite" in rows.run(NOWHERE, code=2).stderr
    assert rows.out.read_text() == "mine"
    rows.run(server.address, "--overwrite")
    assert rows.labels == ["A"]
    nowhere = rows.file.parent / "no" / "out.csv"
    assert "No such file" in run("t", "--file", rows.file, "--out", nowhere, "--server", NOWHERE, code=1).stderr


def test_an_old_file_stays_until_the_new_one_is_whole(server: LabelServer, rows: Files) -> None:
    rows.out.write_text("old")
    rows.write("a", "")
    rows.run(server.address, "--overwrite", "--on-error", "stop", code=1)
    assert rows.out.read_text() == "old"
    rows.run(server.address, code=1)
    assert rows.labels == ["A", ""]


def test_two_commands_do_not_write_one_file(rows: Files) -> None:
    from adamix_server.cli.rows.journal import Journal

    rows.write("a")
    journal = Journal(rows.journal, {})
    for more in ([], ["--overwrite"]):
        assert "another command writes out.csv.partial" in rows.run(NOWHERE, *more, code=1).stderr
    journal.close()
    assert rows.journal.read_bytes().startswith(b'{"format"')


def test_a_file_that_cannot_be_used_is_told_before_its_version_is_looked_up(rows: Files) -> None:
    assert "does not exist" in rows.run(NOWHERE, "--version", "abcdef", code=1).stderr
    rows.write("a")
    assert "no column 'x'" in rows.run(NOWHERE, "--version", "abcdef", "--column", "x", code=2).stderr


def test_no_rows_need_no_server(rows: Files) -> None:
    rows.write()
    rows.run(NOWHERE)
    assert rows.out.read_bytes() == b"text,n,label,score,error\r\n"


@pytest.mark.parametrize(
    ("answer", "columns"),
    [
        (
            Answer(multi_label=inference_pb2.MultiLabel(labels=["y"], label_ids=[1], scores=[0.125, 0.75])),
            {"labels": '["y"]', "scores": "[0.75]"},
        ),
        (Answer(regression=inference_pb2.Regression(score=-2.5)), {"score": "-2.5"}),
        (Answer(embedding=inference_pb2.Embedding(values=[0.5, 1.0])), {"embedding": "[0.5,1.0]"}),
    ],
)
def test_the_other_heads(answer: Answer, columns: dict[str, str], server: LabelServer, rows: Files) -> None:
    server.answer = lambda item: answer
    rows.write("a")
    rows.run(server.address)
    assert rows.rows == [{"text": "a", "n": "0", **columns, "error": ""}]


def test_no_torch_and_for_a_mistake_no_grpc() -> None:
    code = (
        "import sys\n"
        "from adamix_server.cli.main import app\n"
        "app(['predict', 't', '--file', 'missing.csv', '--out', 'o.csv'], standalone_mode=False)\n"
    )
    check = (
        "import atexit, sys\natexit.register(lambda: print(*sorted({'torch', 'grpc', 'pyarrow'} & set(sys.modules))))\n"
    )
    done = subprocess.run([sys.executable, "-c", check + code], capture_output=True, text=True, check=False)
    assert "missing.csv does not exist" in done.stderr
    assert done.stdout == "\n"
