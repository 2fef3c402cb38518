"""A page of metrics of whoever wrote it, and what two of them say together."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix.errors import InvalidConfig, Unavailable
from adamix_server.cli.metrics_page import Page, PageAddress, fetch, parse
from adamix_server.cli.rates import METRICS, rates
from adamix_server.limits.commands import MAX_METRICS_PAGE_BYTES
from adamix_server.telemetry.metrics import METRICS as THERE_ARE


def page(text: str, at: float = 0.0) -> Page:
    return Page(at, parse(text.encode(), METRICS, "here").series)


def test_only_metrics_that_there_are_are_asked_for() -> None:
    assert THERE_ARE.keys() >= METRICS


def test_what_is_not_asked_for_and_what_is_no_number_is_left_out() -> None:
    found = page(
        'adamix_slots{state="free"} 3\nadamix_slots{state="odd"} NaN\nother{a="b"} 1\n'
        'adamix_requests_total{method="x",code="OK"} 7\n# HELP other x\nbroken{{{ 1\n'
    )
    assert found.series == {
        "adamix_slots": {(("state", "free"),): 3.0},
        "adamix_requests_total": {(("code", "OK"), ("method", "x")): 7.0},
    }
    assert found.total("adamix_requests_total", code="OK") == 7.0
    assert found.total("adamix_requests_total", code="NOT_FOUND") == 0.0


@given(
    st.text(max_size=60) | st.sampled_from(["adamix_slots{", 'adamix_slots{a="b" 1', "adamix_slots x", "adamix_slots"])
)
@settings(max_examples=30)
def test_any_text_is_a_page_or_refused(text: str) -> None:
    try:
        parse(f"adamix_slots{text}".encode("utf-8", "replace"), METRICS, "here")
    except Unavailable as error:
        assert error.message == "what is at here is no page of metrics"  # noqa: PT017 - or nothing is raised


def calls(ok: int, failed: int, quick: int) -> str:
    method = 'method="adamix.v1.InferenceService/Predict"'
    return (
        f'adamix_requests_total{{{method},code="OK"}} {ok}\n'
        f'adamix_requests_total{{{method},code="NOT_FOUND"}} {failed}\n'
        'adamix_requests_total{method="adamix.v1.AdapterService/WatchTasks",code="OK"} 1000000\n'
        f'adamix_request_seconds_bucket{{{method},le="0.1"}} {quick}\n'
        f'adamix_request_seconds_bucket{{{method},le="1.0"}} {ok + failed - 1}\n'
        f'adamix_request_seconds_bucket{{{method},le="+Inf"}} {ok + failed}\n'
    )


def test_what_two_pages_say() -> None:
    found = rates(page(calls(0, 0, 0) + "adamix_x 1"), page(calls(180, 20, 150), at=10.0), 64)
    assert (found.calls_per_s, found.failed_per_s, found.p50_s, found.p99_s) == (20.0, 2.0, 0.1, 1.0)
    assert (found.batch_fill, found.batch_inputs, found.kv_usage, found.busiest) == (None, None, None, ())


def test_a_server_that_began_anew_has_begun_at_nothing() -> None:
    task = 'adamix_task_requests_total{{tenant="t",task="a"}} {}\n'
    found = rates(page(calls(1_000, 0, 1_000) + task.format(50)), page(calls(20, 0, 10) + task.format(30), at=10.0), 64)
    assert found.calls_per_s == 2.0
    assert found.busiest[0].inputs_per_s == 3.0


def test_batches_and_the_device() -> None:
    after = (
        "adamix_batch_tokens_sum 960\nadamix_batch_tokens_count 10\nadamix_batch_requests_sum 40\n"
        "adamix_compute_seconds_sum 5\nadamix_generated_tokens_total 70\n"
        'adamix_resident_adapters{tier="device"} 3\nadamix_resident_adapters{tier="host"} 9\n'
        'adamix_slots{state="free"} 1\nadamix_kv_cache_usage_ratio 0.25\n'
    )
    found = rates(page(""), page(after, at=10.0), 192)
    assert (found.batch_tokens, found.batch_inputs, found.batch_fill) == (96.0, 4.0, 0.5)
    assert (found.busy, found.generated_tokens_per_s, found.kv_usage) == (0.5, 7.0, 0.25)
    assert (found.residency, found.slots) == ({"device": 3, "host": 9}, {"free": 1})


@pytest.mark.parametrize("text", ["", "host:port", "ftp://h:1", "http://", "h:99999", "h\n:1", "http://[::1"])
def test_an_address_that_is_none(text: str) -> None:
    with pytest.raises(InvalidConfig):
        PageAddress(text)


def test_addresses() -> None:
    assert PageAddress("h:9").split() == ("http", "h", 9, "/metrics")
    assert PageAddress("https://h/a/b").split() == ("https", "h", 443, "/a/b")
    assert PageAddress("[::1]:9").split() == ("http", "::1", 9, "/metrics")


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """Answers each path with what is in its `pages`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = self.server.pages[self.path]  # type: ignore[attr-defined]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_page_of_the_most_bytes_is_read_and_one_more_is_not(server: ThreadingHTTPServer) -> None:
    begun = b"adamix_queue_requests 7\n#"
    server.pages = {  # type: ignore[attr-defined]
        "/metrics": (200, begun.ljust(MAX_METRICS_PAGE_BYTES, b".")),
        "/more": (200, begun.ljust(MAX_METRICS_PAGE_BYTES + 1, b".")),
        "/missing": (404, b""),
    }
    address = f"127.0.0.1:{server.server_port}"
    assert fetch(PageAddress(address), METRICS).total("adamix_queue_requests") == 7.0
    with pytest.raises(Unavailable, match="over 32 MiB"):
        fetch(PageAddress(f"http://{address}/more"), METRICS)
    with pytest.raises(Unavailable, match="HTTP 404"):
        fetch(PageAddress(f"http://{address}/missing"), METRICS)
    with pytest.raises(Unavailable, match="no metrics at"):
        fetch(PageAddress("127.0.0.1:1"), METRICS)
