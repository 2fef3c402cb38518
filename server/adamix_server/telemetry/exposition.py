"""The page of a scrape. Text of many series takes a while to write: it is written in a thread, and once for all who
ask meanwhile. Knows no metric.
"""

import asyncio
import gzip
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from adamix_server.telemetry.page_server import Page, Request

_FASTEST = 1


class Exposition:
    """What a registry holds, as text in the form that the scraper wants. Belongs to one event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._under_way: dict[tuple[str, bool], asyncio.Task[bytes]] = {}

    async def page(self, request: Request) -> Page:
        """Answer a scrape: text for Prometheus or OpenMetrics, compressed if the request allows that."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        codings = request.headers.get("accept-encoding", "").split(",")
        is_compressed = any(coding.partition(";")[0].strip().lower() == "gzip" for coding in codings)
        form = content_type, is_compressed
        if (writing := self._under_way.get(form)) is None:
            writing = asyncio.create_task(asyncio.to_thread(self._write, encode, is_compressed))
            self._under_way[form] = writing
            writing.add_done_callback(lambda _: self._under_way.pop(form))
        # Shielded: one who leaves ends nobody else's answer.
        body = await asyncio.shield(writing)
        return Page(
            body, headers={"Content-Type": content_type} | ({"Content-Encoding": "gzip"} if is_compressed else {})
        )

    def _write(self, encode: Callable[[CollectorRegistry], bytes], is_compressed: bool) -> bytes:
        text = encode(self._registry)
        return gzip.compress(text, _FASTEST) if is_compressed else text
