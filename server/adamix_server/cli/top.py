"""`adamix top`: a server as it works, drawn anew every second.

Thin: looks (`Looking`), and draws what was seen. What two looks say together is in `rates.py`.
"""

import json
import threading
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from adamix.cli.terminal import JsonFlag, Screen, exit_codes
from adamix.errors import AdamixError, Code, InvalidConfig
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.cli.printing import plain, safe, shares, show, until_ctrl_c

if TYPE_CHECKING:
    from adamix_client import Client, Load, ServerInfo, TaskChange
    from adamix_server.cli.metrics_page import Page, PageAddress
    from adamix_server.cli.rates import Rates

_MOST_CHANGES = 5
_BAR_CHARS = 24
_NONE = "–"


def top(
    metrics: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of the server's --metrics-listen: rates, batches, residency.  [default: none]"),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, print it and end.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Show a server at work until Ctrl-C: calls a second, queue, batches, residency. With --json a line a look."""
    with exit_codes():
        console = Screen()
        if not (once or json_ or console.is_terminal):
            raise InvalidConfig("this is drawn on a terminal: say --once, or --json for a line a look", field="once")
        address = _address(metrics)
        with connect(server, api_key_file) as client, until_ctrl_c():
            # Also says in one sentence that there is no server.
            looking = Looking(client, client.info(), address)
            if once:
                seen = looking.look()
                if address is not None and seen.problem is None:
                    time.sleep(interval)
                    seen = looking.look()
                seen.tasks = len(client.tasks())
                # The widest table is that of a laptop.
                show(seen.document, _drawn(seen, looking.info), as_json=json_)
            elif json_:
                while True:
                    typer.echo(json.dumps(looking.look().document))
                    time.sleep(interval)
            else:
                _draw(looking, console, interval)


@dataclass
class Seen:
    """One look. `problem` is why something is missing in it."""

    time: datetime
    load: "Load | None" = None
    rates: "Rates | None" = None
    tasks: int | None = None
    changes: list[str] = field(default_factory=list)
    problem: str | None = None

    @property
    def document(self) -> dict[str, Any]:
        return {
            "time": self.time.isoformat(),
            "load": None if self.load is None else plain(self.load),
            "rates": None if self.rates is None else self.rates.document,
            "tasks": self.tasks,
            "problem": self.problem,
        }


class Looking:
    """Looks at a server again and again. A server that is away is looked for; it is only said."""

    def __init__(self, client: "Client", info: "ServerInfo", metrics: "PageAddress | None") -> None:
        self.info = info
        self._client = client
        self._metrics = metrics
        self._page: Page | None = None
        self._known: set[str] | None = None
        self._changes: deque[str] = deque(maxlen=_MOST_CHANGES)

    def look(self) -> Seen:
        seen = Seen(datetime.now(UTC), changes=list(self._changes))
        seen.tasks = None if self._known is None else len(self._known)
        try:
            seen.load = self._client.load_report()
        except AdamixError as error:
            if error.code in (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED):
                raise
            seen.problem = error.message
        if self._metrics is not None:
            self._look_at_page(seen, self._metrics)
        return seen

    def watch(self) -> None:
        """Begin to count tasks and to keep their last changes, in a thread that ends with the client."""
        threading.Thread(target=self._follow, name="top-watch", daemon=True).start()

    def _look_at_page(self, seen: Seen, address: "PageAddress") -> None:
        from adamix_server.cli.metrics_page import fetch
        from adamix_server.cli.rates import METRICS, rates

        try:
            page = fetch(address, METRICS)
        except AdamixError as error:
            self._page = None
            seen.problem = seen.problem or error.message
            return
        if self._page is not None:
            seen.rates = rates(self._page, page, int(self.info.limits.get("max_batch_tokens", 0)))
        self._page = page

    def _follow(self) -> None:
        known: set[str] = set()
        try:
            with closing(self._client.watch()) as changes:
                for change in changes:
                    if change.task is None:
                        known.discard(change.name)
                    if change.task is None or change.name in known:
                        self._changes.append(_said(change))
                    if change.task is not None:
                        known.add(change.name)
                    self._known = known
        except AdamixError:
            # Who may not read tasks, or has closed the client, sees no count of them.
            self._known = None


def _address(metrics: str | None) -> "PageAddress | None":
    from adamix_server.cli.metrics_page import PageAddress

    return None if metrics is None else PageAddress(metrics)


def _said(change: "TaskChange") -> str:
    name = safe(change.name.rsplit("/", 1)[-1], 40)
    what = "deleted" if change.task is None else shares(change.task.traffic) or "nothing live"
    return f"{datetime.now(UTC):%H:%M:%S}  {name}  {what}"


def _draw(looking: Looking, console: Screen, interval: float) -> None:
    from rich.live import Live

    looking.watch()
    with Live(_drawn(looking.look(), looking.info), console=console, auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(interval)
            live.update(_drawn(looking.look(), looking.info), refresh=True)


def _drawn(seen: Seen, info: "ServerInfo") -> Group:
    backbone = info.backbone.get("name") or info.backbone.get("model_type") or ""
    head = f"{safe(str(backbone), 40)} on {safe(info.device, 20)}, {safe(info.compute_dtype, 12)}"
    lines: list[Any] = [Text.from_markup(f"[bold]{head}[/]   {seen.time:%Y-%m-%d %H:%M:%S} UTC")]
    if seen.problem is not None:
        lines.append(Text.from_markup(f"[red]{safe(seen.problem, 200)}[/]"))
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value, bar in _rows(seen):
        table.add_row(name, value, bar)
    lines.append(table)
    if seen.rates is not None and seen.rates.busiest:
        busiest = Table("tenant", "task", "inputs/s", box=None, pad_edge=False)
        for busy in seen.rates.busiest:
            busiest.add_row(safe(busy.tenant, 30), safe(busy.task, 40), f"{busy.inputs_per_s:,.1f}")
        lines.append(busiest)
    lines += [Text.from_markup(change) for change in seen.changes]
    return Group(*lines)


def _rows(seen: Seen) -> list[tuple[str, str, str]]:
    """(name, value, bar)."""
    load, now = seen.load, seen.rates
    rows = []
    if now is not None:
        rows += [
            ("calls/s", f"{now.calls_per_s:,.1f}   failed {now.failed_per_s:,.1f}   p99 {_ms(now.p99_s)}", ""),
            ("inputs/s", f"{now.inputs_per_s:,.1f}   tokens/s {now.tokens_per_s:,.0f}", ""),
        ]
        if now.generated_tokens_per_s:
            rows.append(("generated tokens/s", f"{now.generated_tokens_per_s:,.0f}", ""))
        if now.kv_usage:
            rows.append(("keys and values", f"{now.kv_usage:.0%}", _bar(now.kv_usage)))
    if load is not None:
        rows.append(("queue", f"{load.queued_inputs:,} inputs, {load.queued_tokens:,} tokens", ""))
        rows.append(("largest batch", f"{load.running_inputs:,} inputs", ""))
    if now is not None:
        inputs = _NONE if now.batch_inputs is None else f"{now.batch_inputs:,.1f} inputs"
        fill = now.batch_fill
        rows += [
            ("batch fill", f"{_NONE if fill is None else f'{fill:.0%}'}   {inputs}", _bar(fill or 0.0)),
            ("device busy", f"{now.busy:.0%}", _bar(now.busy)),
        ]
    if load is not None:
        held = load.resident_adapters / load.slots if load.slots else 0.0
        rows.append(("adapters", f"{load.resident_adapters:,} of {load.slots:,} slots", _bar(held)))
    if now is not None and now.residency:
        rows.append(("residency", _listed(now.residency), ""))
    if now is not None and now.slots:
        rows.append(("slots", _listed(now.slots), ""))
    if seen.tasks is not None:
        rows.append(("tasks", f"{seen.tasks:,}", ""))
    if now is None:
        rows.append(("calls/s", f"{_NONE}   (rates need --metrics HOST:PORT)" if seen.problem is None else _NONE, ""))
    return rows


def _listed(counts: Any) -> str:
    return ", ".join(f"{safe(name, 20)} {number:,}" for name, number in counts.items())


def _ms(seconds: float | None) -> str:
    return _NONE if seconds is None else f"<= {seconds * 1000:,.0f} ms"


def _bar(share: float) -> str:
    filled = round(min(max(share, 0.0), 1.0) * _BAR_CHARS)
    return "█" * filled + "░" * (_BAR_CHARS - filled)
