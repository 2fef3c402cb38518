"""`adamix bench faces` as a user runs it, and what its parts count and time."""

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adamix.errors import Unavailable
from adamix_bench import tiny
from adamix_bench.cli import bench
from adamix_bench.faces import programs, run, served
from adamix_bench.faces.http_loadgen import HttpLoadProcess
from adamix_bench.faces.report import FORMAT, Report, plot
from adamix_bench.faces.settings import PARTS, QUICK
from adamix_bench.measure import Spread
from adamix_bench.serving.load import Plan
from adamix_testing.label_server import LabelServer, label

GOALS = {
    "http.cpu": 1.5,
    "http.retention": 0.9,
    "client.import_s": 0.25,
    "client.mb": 60,
    "cli.help_s": 0.3,
    "cli.mistake_s": 0.5,
    "file.rate": 0.85,
}


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(bench, ["faces", *arguments])


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers each input; some texts ask for what goes wrong."""

    protocol_version = "HTTP/1.1"
    connections: set[Any]

    def do_POST(self) -> None:
        self.connections.add(self.client_address)
        inputs = json.loads(self.rfile.read(int(self.headers["content-length"])))["inputs"]
        texts = [item["text"] for item in inputs]
        if "hang up" in texts:
            self.close_connection = True
            return
        ok = {"classification": {"label": "x"}}
        answers = [{"error": {"code": 3}} if text == "bad" else ok for text in texts]
        body = json.dumps({"predictions": answers}).encode()
        self.send_response(429 if "full" in texts else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def answers() -> Iterator[str]:
    Answers.connections = set()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def bodies(*calls: list[str]) -> list[bytes]:
    return [json.dumps({"inputs": [{"task": "t", "text": text} for text in texts]}).encode() for texts in calls]


def test_calls_over_http_and_what_became_of_their_inputs(answers: str) -> None:
    payloads = bodies(["a", "b"], ["a", "bad"], ["full", "x"], ["hang up"], ["c"], ["d"])
    with HttpLoadProcess() as load:
        outcome = load.run(Plan(address=answers, payloads=payloads, in_flight=1, timeout_s=20, keep_answers=True))
        assert outcome.calls == list(range(6))
        assert outcome.answered == [2, 1, 0, 0, 1, 1]
        assert outcome.errors == {"3": 1, "HTTP_429": 2, "HTTP_0": 1}
        assert json.loads(outcome.answers[4]) == {"predictions": [{"classification": {"label": "x"}}]}
        assert 0 < max(outcome.latency_s) <= outcome.wall_s
        # One connection, and another one after the one that was hung up.
        assert len(Answers.connections) == 2
        outcome = load.run(Plan(address=answers, payloads=payloads[:1] * 20, in_flight=3, timeout_s=20))
        assert sorted(outcome.calls) == list(range(20))
        assert sum(outcome.answered) == 40
        assert len(Answers.connections) <= 5


def test_the_rows_of_a_file_are_all_answered_and_weighed(tmp_path: Path) -> None:
    with LabelServer(lambda item: label("x")) as server:
        found = served.predict_file(tmp_path, ["a", "b", "c"], 200, server.address)
        assert len(server.asked) == 200
        assert 0 < found.seconds < 60
        assert 0 < found.cpu_s < 60
        # A Python with gRPC, and without torch.
        assert 20 << 20 < found.peak_bytes < 200 << 20
        server.answer = lambda item: label("")
        with pytest.raises(Unavailable, match="0 of 200 rows"):
            served.predict_file(tmp_path, ["a"], 200, server.address)


def test_a_program_is_timed_that_ends_as_it_should() -> None:
    fine, fails = ((sys.executable, "-c", f"raise SystemExit({code})") for code in (0, 2))
    ran = programs._ran(fails, fails=True)
    assert ran.cpu_s > 0
    assert 0 < ran.seconds < 60
    for command, expected in ((fine, True), (fails, False)):
        with pytest.raises(Unavailable, match="ended with"):
            programs._ran(command, fails=expected)


def test_the_slowest_mistake_is_the_one_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ran(command: tuple[str, ...], *, fails: bool) -> programs.Ran:
        assert fails == ("--help" not in command)
        return programs.Ran(2.0 if "register" in command else 0.1, 0.05)

    monkeypatch.setattr(programs, "_ran", ran)
    report = Report(tmp_path, {}, {}, [])
    programs.command_line(QUICK, report, print)
    helps, mistakes = report.goals
    assert (helps.name, helps.holds, mistakes.name, mistakes.holds) == ("cli.help_s", True, "cli.mistake_s", False)
    assert "adamix register" in mistakes.note
    assert len(report.facts["mistakes_s"]) == len(programs._MISTAKES)


def test_without_an_index_the_size_is_not_measured_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.run

    def offline(command: list[str], **how: Any) -> Any:
        if "pip" in command:
            return subprocess.CompletedProcess(command, 1, "", "warning\nno index is reachable\n")
        return real(command, **how)

    monkeypatch.setattr(subprocess, "run", offline)
    monkeypatch.setattr(programs.venv, "create", lambda *_, **__: None)
    report = Report(tmp_path, {}, {}, [])
    programs.client(replace(QUICK, starts=1), report, print)
    imported, size = report.goals
    assert imported.measured is not None
    assert (size.name, size.measured, size.holds, size.note) == ("client.mb", None, None, "no index is reachable")


def test_bodies_ask_what_the_messages_do() -> None:
    from adamix_bench.serving.workload import Requests

    requests = Requests((0, 1, 0), ("a", "b", "c"), ())
    first, second = map(json.loads, served.json_bodies(requests, 2))
    assert first == {"inputs": [{"task": "bench-00000", "text": "a"}, {"task": "bench-00001", "text": "b"}]}
    assert second == {"inputs": [{"task": "bench-00000", "text": "c"}]}


def test_what_cannot_work_is_refused() -> None:
    done = invoke("--only", "everything")
    assert done.exit_code == 2
    assert "cli, client, http, file" in done.stderr


def test_a_part_that_fails_leaves_the_others_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise Unavailable("there is nobody")

    def measures(_: object, report: Report, say: object) -> None:
        report.add("client.mb", "what", Spread((30.0,)), 60)

    monkeypatch.setattr(programs, "command_line", fails)
    monkeypatch.setattr(programs, "client", measures)
    done = invoke("--only", "cli,client", "--json", "--out", str(tmp_path))
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "faces.json").read_text("utf-8"))
    assert (document["format"], document["complete"]) == (FORMAT, False)
    assert document["failures"] == {"cli": "there is nobody"}
    (goal,) = document["goals"]
    assert (goal["name"], goal["bound"], goal["holds"]) == ("client.mb", "at most", True)
    assert (tmp_path / "faces.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_leaves_what_had_been_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_served", stop)
    done = invoke("--only", "http", "--out", str(tmp_path))
    assert done.exit_code == 1
    assert json.loads((tmp_path / "faces.json").read_text("utf-8"))["complete"] is False


def test_nothing_measured_is_no_picture(tmp_path: Path) -> None:
    report = Report(tmp_path, {}, {}, [])
    report.add("http.cpu.32", "what", Spread((1.0,)))
    report.add("client.mb", "what", None, 60, note="no index")
    assert plot(report) is None


@pytest.mark.long
def test_a_whole_run_measures_every_goal(tmp_path: Path) -> None:
    """On a backbone that says nothing about speed: that everything is carried out, not that anything holds."""
    backbone = tiny.write_backbone(tmp_path / "backbone")
    arguments = ["--quick", "--backbone", str(backbone), "--threads", "1", "--json", "--out", str(tmp_path / "out")]
    done = invoke(*[word for name in PARTS for word in ("--only", name)], *arguments)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["failures"] == {}
    found = {goal["name"]: goal for goal in document["goals"]}
    assert {name: found[name]["target"] for name in GOALS} == GOALS
    assert {name for name, goal in found.items() if goal["target"] is None} == {
        "http.cpu.32",
        "grpc.retention",
        "file.cpu",
        "file.memory",
    }
    for name, goal in found.items():
        assert goal["measured"] is not None or name == "client.mb"
    assert document["facts"]["file"]["rows"] == QUICK.rows
