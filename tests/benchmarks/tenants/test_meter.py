"""The engine's own count: read from metrics, between two moments at which it changed."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from adamix_bench.tenants.meter import Meter, read_count


def test_the_count_is_found_among_other_metrics() -> None:
    text = "# TYPE adamix_batch_tokens histogram\nadamix_batch_tokens_sum_of 7\nadamix_batch_tokens_sum 1.5e+03\nx 1\n"
    assert read_count(text) == 1500
    assert read_count('adamix_batch_tokens_sum{process="engine-0"} 3.0') == 3
    assert read_count("adamix_batch_tokens_count 3") is None


def test_a_rate_is_between_the_first_change_and_the_last() -> None:
    meter = Meter(1)
    meter.changes = [(0.5, 10.0), (1.25, 1_000.0), (2.25, 3_000.0), (3.25, 6_000.0), (4.5, 6_500.0)]
    assert meter.tokens_per_s(1.0, 4.0) == pytest.approx(2500)
    assert meter.tokens_per_s(2.0, 3.0) is None


class Counting(BaseHTTPRequestHandler):
    count = 0

    def do_GET(self) -> None:
        Counting.count += 1
        self.send_response(200)
        self.end_headers()
        # Every count twice.
        self.wfile.write(b"adamix_batch_tokens_sum %d\n" % (10 * (Counting.count // 2)))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Counting)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_only_changes_are_kept_and_nobody_there_is_no_error(port: int) -> None:
    with Meter(port) as meter:
        until = time.monotonic() + 20
        while len(meter.changes) < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert [count for _, count in meter.changes[:3]] == [0, 10, 20]
    with Meter(1) as meter:
        time.sleep(0.25)
    assert meter.changes == []
