"""`info`, `health`, `drain` and `top`, as a person types them."""

import asyncio
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import msgspec
import pytest
from typer.testing import CliRunner

from adamix_client import Client, Load
from adamix_server.channel.supervisor_frames import DrainWanted
from adamix_server.cli import top
from adamix_server.cli.main import app
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.command import Adamix


async def test_a_server_is_described(adamix: Adamix) -> None:
    found = await adamix.document("info")
    assert (found["device"], found["compute_dtype"], found["limits"]["max_batch_tokens"]) == ("cpu", "float32", 64)
    assert found["load"] == {
        "queued_inputs": 0,
        "queued_tokens": 0,
        "running_inputs": 0,
        "resident_adapters": 0,
        "slots": 4,
    }
    assert "tiny" in (await adamix("info")).stdout


async def test_health_is_an_exit_code(adamix: Adamix) -> None:
    assert (await adamix("health")).stdout == "SERVING\n"
    assert await adamix.document("health", "--service", "inference") == {"status": "SERVING"}
    assert await adamix.document("health", "--service", "adamix.v1.AdapterService") == {"status": "SERVING"}
    assert await adamix.document("health", "--service", "nobody", code=1) == {"status": "SERVICE_UNKNOWN"}
    assert await adamix.document("health", "--service", "x" * 200, code=1) == {"status": "SERVICE_UNKNOWN"}
    harness = await adamix.harness()
    harness.kill_engine(back_in_s=60)
    await harness.until(lambda: not harness.front_end._readiness.is_ready)
    assert await adamix.document("health", code=1) == {"status": "NOT_SERVING"}


def test_no_server_is_no_health() -> None:
    result = CliRunner().invoke(app, ["health", "--server", "127.0.0.1:1"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "no server answers" in result.stderr


async def test_a_drain_is_asked_for(adamix: Adamix) -> None:
    assert await adamix.document("drain") == {"draining": True}
    await (await adamix.harness()).supervisor.expect(DrainWanted)


async def test_a_look_without_metrics(seed: Seed, make_adapter: MakeAdapter, adamix: Adamix) -> None:
    seed("support", make_adapter(seed=1))
    harness = await adamix.harness()
    harness.engine.load = msgspec.structs.replace(harness.engine.load, queued_inputs=3, resident_adapters=2)
    seen = await adamix.document("top", "--once")
    assert (seen["load"]["queued_inputs"], seen["rates"], seen["tasks"], seen["problem"]) == (3, None, 1, None)
    drawn = (await adamix("top", "--once")).stdout
    assert "2 of 4 slots" in drawn
    assert "--metrics" in drawn
    assert "say --once" in (await adamix("top", code=2)).stderr
    assert "neither HOST:PORT" in (await adamix("top", "--once", "--metrics", "ftp://x", code=2)).stderr


PAGE = """# TYPE adamix_requests counter
adamix_requests_total{{method="adamix.v1.InferenceService/Predict",code="OK"}} {calls}
adamix_requests_total{{method="adamix.v1.ServerService/GetLoad",code="OK"}} 5000
# TYPE adamix_batch_tokens histogram
adamix_batch_tokens_bucket{{le="+Inf"}} {calls}
adamix_batch_tokens_sum {tokens}
adamix_batch_tokens_count {calls}
# TYPE adamix_task_requests counter
adamix_task_requests_total{{tenant="default",task="[bold]evil[/bold]"}} {calls}
"""


@pytest.fixture
def metrics() -> Iterator[str]:
    """A page on which there are ten more calls, of 32 tokens each, whenever it is looked at."""
    looks = iter(range(1, 1_000))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            look = next(looks)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PAGE.format(calls=10 * look, tokens=320 * look).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


async def test_a_look_with_metrics(adamix: Adamix, metrics: str) -> None:
    seen = await adamix.document("top", "--once", "--metrics", metrics, "--interval", 0.2)
    rates = seen["rates"]
    assert 5 < rates["calls_per_s"] <= 50
    assert (rates["batch_tokens"], rates["batch_fill"]) == (32.0, 0.5)
    assert rates["busiest"][0]["task"] == "[bold]evil[/bold]"
    drawn = (await adamix("top", "--once", "--metrics", metrics, "--interval", 0.2)).stdout
    assert "50%" in drawn
    assert "[bold]evil[/bold]" in drawn


async def test_a_page_that_is_away_is_said(adamix: Adamix) -> None:
    seen = await adamix.document("top", "--once", "--metrics", "127.0.0.1:1")
    assert (seen["rates"], seen["load"]["slots"]) == (None, 4)
    assert seen["problem"].startswith("no metrics at 127.0.0.1:1")


async def test_ctrl_c_ends_it_well(adamix: Adamix, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is lost in between: it is said, and looked for."""
    looks = 0

    def look(client: Client) -> Load:
        nonlocal looks
        looks += 1
        if looks == 2:
            from adamix.errors import Unavailable

            raise Unavailable("gone for a moment")
        if looks == 4:
            raise KeyboardInterrupt
        return Load(0, 0, 0, 0, 4)

    monkeypatch.setattr(Client, "load_report", look)
    monkeypatch.setattr(top.time, "sleep", lambda seconds: None)
    words = ["top", "--json", "--server", (await adamix.harness()).address]
    result = await asyncio.to_thread(CliRunner().invoke, app, words)
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["problem"] for line in result.stdout.splitlines()] == [None, "gone for a moment", None]
    assert result.stderr == ""


async def test_on_a_terminal_it_is_drawn_until_ctrl_c(
    seed: Seed, make_adapter: MakeAdapter, adamix: Adamix, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    from adamix.cli.terminal import Screen

    seed("support", make_adapter(seed=1))
    out = io.StringIO()
    monkeypatch.setattr(top, "Screen", lambda: Screen(file=out, force_terminal=True, width=100, height=40))
    sleeps = 0

    def sleep(seconds: float) -> None:
        nonlocal sleeps
        sleeps += 1
        if sleeps == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(top.time, "sleep", sleep)
    words = ["top", "--server", (await adamix.harness()).address]
    result = await asyncio.to_thread(CliRunner().invoke, app, words)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "of 4 slots" in out.getvalue()
    # The screen that was there before is there again, and its cursor.
    assert out.getvalue().rindex("\x1b[?1049l") > out.getvalue().rindex("of 4 slots")
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")
