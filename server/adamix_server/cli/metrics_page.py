"""A server's page of metrics, read as a person's tool reads it: bounded in size and time, and only what is asked for.

Knows names of metrics alone; what they mean, `rates.py` knows.
"""

import http.client
import math
import ssl
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from adamix.errors import InvalidConfig, Unavailable
from adamix_server.limits.commands import MAX_METRICS_PAGE_BYTES

_TIMEOUT_S = 5.0
_SUFFIXES = ("_total", "_bucket", "_sum", "_count", "_created")

# Of one series: its labels by name, in a form that can be compared.
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Page:
    """What a page said. `at` is the time of a clock that only goes on, in seconds."""

    at: float
    series: Mapping[str, Mapping[Labels, float]]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series of this name with these labels; 0 of none."""
        wanted = labels.items()
        return sum(value for of, value in self.series.get(name, {}).items() if wanted <= dict(of).items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums by the values of one label."""
        found: dict[str, float] = {}
        for of, value in self.series.get(name, {}).items():
            key = dict(of).get(label, "")
            found[key] = found.get(key, 0.0) + value
        return found


@dataclass(frozen=True)
class PageAddress:
    """Where a page is. `text` is HOST:PORT, or a URL. Raises InvalidConfig."""

    text: str

    def __post_init__(self) -> None:
        self.split()

    def split(self) -> tuple[str, str, int, str]:
        """(scheme, host, port, path)."""
        try:
            url = urlsplit(self.text if "://" in self.text else f"http://{self.text}")
            host, port = url.hostname, url.port
        except ValueError:
            host, port, url = None, None, urlsplit("")
        if not host or url.scheme not in ("http", "https") or any(not char.isprintable() for char in self.text):
            raise InvalidConfig(f"{self.text[:80]!r} is neither HOST:PORT nor a URL", field="metrics")
        path = url.path if url.path not in ("", "/") else "/metrics"
        return url.scheme, host, port or (443 if url.scheme == "https" else 80), path


def fetch(address: PageAddress, names: Collection[str]) -> Page:
    """The page there, of it the metrics of these names.

    Raises:
        Unavailable: nobody answers with such a page.
    """
    scheme, host, port, path = address.split()
    connection: http.client.HTTPConnection
    if scheme == "https":
        connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=ssl.create_default_context())
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path, headers={"Accept": "text/plain"})
        answer = connection.getresponse()
        data = answer.read(MAX_METRICS_PAGE_BYTES + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"no metrics at {address.text}: {error}") from None
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise Unavailable(f"no metrics at {address.text}: HTTP {answer.status}")
    if len(data) > MAX_METRICS_PAGE_BYTES:
        raise Unavailable(f"the page of metrics at {address.text} is over {MAX_METRICS_PAGE_BYTES >> 20} MiB")
    return parse(data, names, address.text)


def parse(data: bytes, names: Collection[str], where: str) -> Page:
    """A page in the text format of Prometheus. Raises Unavailable: it is none."""
    lines = [line for line in data.decode("utf-8", "replace").splitlines() if _is_of(line, names)]
    series: dict[str, dict[Labels, float]] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                if math.isfinite(sample.value):
                    series.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    except (ValueError, KeyError, IndexError):
        raise Unavailable(f"what is at {where} is no page of metrics") from None
    return Page(time.monotonic(), series)


def _is_of(line: str, names: Collection[str]) -> bool:
    """Whether a line is a sample of one of the metrics: the rest of a large page is not worth its parsing."""
    name = line.partition("{")[0].partition(" ")[0]
    if name in names:
        return True
    return any(name.endswith(suffix) and name.removesuffix(suffix) in names for suffix in _SUFFIXES)
