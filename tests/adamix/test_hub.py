"""A name that stands for nothing is refused within two seconds without a network, and it is said what was tried.

Nothing here asserts on time: a hub that is silent would keep a test for minutes if somebody waited for it.
"""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from adamix import hub
from adamix.backbones import names
from adamix.data import sources
from adamix.errors import InvalidConfig


@pytest.fixture(autouse=True)
def _own_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "_answers", {})
    monkeypatch.setattr(hub, "WAIT_S", 0.2)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A hub that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        yield listening


def answering(monkeypatch: pytest.MonkeyPatch, status: int) -> HTTPServer:
    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


def cache(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / "home" / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc123")
    (snapshot / "config.json").write_text("{}")
    return snapshot


@pytest.mark.usefixtures("silent")
def test_a_silent_hub_is_waited_for_shortly_and_once() -> None:
    with pytest.raises(InvalidConfig, match=r"no backbone 'minlm' \(did you mean minilm\?\).*unreachable: no answer"):
        names.check("minlm")
    with pytest.raises(InvalidConfig, match=r"no data 'tree' \(did you mean trec\?\).*unreachable: no answer"):
        sources.check("tree")
    with pytest.raises(InvalidConfig, match="unreachable"):
        sources.check("glue:rte")
    with pytest.raises(InvalidConfig, match="unreachable"):
        names.resolve("some/model")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "nonsense", "ftp://x", "http://"])
def test_a_hub_that_is_not_there(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(InvalidConfig, match="unreachable"):
        names.check("bert-base-uncased")


@pytest.mark.parametrize(("status", "is_there"), [(200, True), (404, True), (401, True), (503, False), (504, False)])
def test_any_answer_but_a_gateway_s_is_a_hub(status: int, is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    server = answering(monkeypatch, status)
    try:
        assert (hub.unreachable() is None) == is_there
        assert names.resolve("bert-base-uncased") if is_there else True
    finally:
        server.shutdown()
        server.server_close()


def test_offline_the_hub_is_not_asked(silent: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InvalidConfig, match="HF_HUB_OFFLINE is set; not in its cache"):
        names.check("bert-base-uncased")
    silent.settimeout(0.05)
    with pytest.raises(TimeoutError):
        silent.accept()


@pytest.mark.usefixtures("silent")
def test_what_is_in_the_cache_is_taken_without_a_hub(tmp_path: Path) -> None:
    snapshot = cache(tmp_path, "some/model")
    names.check("some/model")
    assert names.resolve("some/model") == str(snapshot)
    (tmp_path / "home" / "datasets" / "some___data").mkdir(parents=True)
    sources.check("some/data")
    sources.check("some/data:config")


@pytest.mark.usefixtures("silent")
def test_no_name_leads_out_of_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "hub" / "models--some--model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("../../../..")
    assert hub.cached_model("some/model") is None


@pytest.mark.parametrize(
    "name", ["a/b/c", "a b", "-x", "a..b", "x" * 300, "a\0b", "ünicode", "../x", "~nobody/x", "", "\x1b[2J"]
)
def test_what_is_no_name_is_not_asked_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "unreachable", lambda: pytest.fail("asked"))
    with pytest.raises(InvalidConfig):
        names.check(name)
    with pytest.raises(InvalidConfig):
        sources.check(name)


def test_a_slow_line_is_given_the_time_of_the_hub_s_own_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.15")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        assert hub.unreachable() == "no answer from 127.0.0.1 within 0.15 s"


def test_a_path_is_a_path(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"config\.json"):
        names.check(str(tmp_path))
    with pytest.raises(InvalidConfig, match="does not exist"):
        sources.check(str(tmp_path / "none.csv"))
    with pytest.raises(InvalidConfig, match="no file"):
        sources.check("./none")
    (tmp_path / "rows.csv").write_text("text,label\n")
    sources.check(str(tmp_path / "rows.csv"))
