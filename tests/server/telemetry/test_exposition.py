"""The page of a scrape: in the form that was asked for, and written once for many."""

import asyncio
import gzip
import threading
from collections.abc import Iterable

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adamix_server.telemetry.exposition import Exposition
from adamix_server.telemetry.page_server import Request


class Slow(Collector):
    """One gauge, that can be read once `go_on` is set."""

    def __init__(self) -> None:
        self.reads = 0
        self.is_read = threading.Event()
        self.go_on = threading.Event()

    def collect(self) -> Iterable[Metric]:
        self.reads += 1
        self.is_read.set()
        assert self.go_on.wait(10)
        return [GaugeMetricFamily("answer", "To everything.", 42)]


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def exposition(slow: Slow) -> Exposition:
    registry = CollectorRegistry()
    slow.go_on.set()
    registry.register(slow)
    slow.reads = 0
    slow.is_read.clear()
    return Exposition(registry)


def scrape(**headers: str) -> Request:
    return Request("/metrics", headers)


async def test_text_for_those_who_say_nothing(exposition: Exposition) -> None:
    page = await exposition.page(scrape())
    assert page.body.decode().splitlines()[-1] == "answer 42.0"
    assert page.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "Content-Encoding" not in page.headers


async def test_the_form_that_was_asked_for(exposition: Exposition) -> None:
    page = await exposition.page(scrape(accept="application/openmetrics-text; version=1.0.0"))
    assert page.headers["Content-Type"].startswith("application/openmetrics-text")
    assert page.body.endswith(b"# EOF\n")


async def test_compressed_for_those_who_can_read_it(exposition: Exposition) -> None:
    page = await exposition.page(scrape(**{"accept-encoding": "deflate, gzip;q=1.0"}))
    assert page.headers["Content-Encoding"] == "gzip"
    assert b"answer 42.0" in gzip.decompress(page.body)


async def test_many_at_once_are_written_for_once_and_the_loop_goes_on(exposition: Exposition, slow: Slow) -> None:
    slow.go_on.clear()
    asking = [asyncio.create_task(exposition.page(scrape())) for _ in range(10)]
    assert await asyncio.to_thread(slow.is_read.wait, 10)
    # One who leaves ends nobody else's.
    asking.pop().cancel()
    slow.go_on.set()
    pages = await asyncio.gather(*asking)
    assert {page.body for page in pages} == {pages[0].body}
    assert slow.reads == 1
    await exposition.page(scrape())
    assert slow.reads == 2
