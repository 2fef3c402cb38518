"""What `adamix audit` asks a server, and how entries are printed.

Thin, as the other commands.
"""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.table import Table

from adamix.cli.terminal import Screen
from adamix.errors import Unavailable
from adamix_server.cli import printing
from adamix_server.cli.store import say

if TYPE_CHECKING:
    from adamix_client import Client

# An entry in proto3 JSON, with the names of its fields.
Entry = Mapping[str, Any]

_LOOK_S = 1.0


def show(client: "Client", tenant: str, since_us: int, limit: int, *, follows: bool, as_json: bool) -> None:
    """Print the newest entries that the caller may see, the newest last; and then, if asked for, each as it is
    written."""
    since = datetime.fromtimestamp(since_us / 1e6, UTC) if since_us else None
    scope = tenant or _widest(client)
    entries = list(client.audit(scope, since=since, limit=limit))[::-1]
    told = [entry.json for entry in entries]
    if not follows:
        print_entries(told, as_json=as_json)
        return
    _print_lines(told, as_json=as_json)
    last_id = max((entry.id for entry in entries), default=0)
    try:
        while True:
            time.sleep(_LOOK_S)
            try:
                more = list(client.audit(scope, since=since, after_id=last_id))
            except Unavailable as error:
                say(f"waiting for the server: {error.message}")
                continue
            # Without one to begin after they come the newest first.
            more.sort(key=lambda entry: entry.id)
            _print_lines([entry.json for entry in more], as_json=as_json)
            last_id = max((entry.id for entry in more), default=last_id)
    except KeyboardInterrupt:
        return


def verify(client: "Client", known: tuple[int, str] | None, *, as_json: bool) -> None:
    """Print whether the audit hangs together, as far as the server tells it. Raises typer.Exit if it does not."""
    from adamix_client import ALL_TENANTS
    from adamix_client.chain import follow

    # After the first, since without one to begin after the newest come first.
    chain = follow(client.audit(ALL_TENANTS, after_id=1), known)
    if as_json:
        numbers = {name: getattr(chain, name) for name in ("entries", "first_id", "last_id", "last_hash")}
        typer.echo(json.dumps({**numbers, "fault": chain.fault or None, "ok": not chain.fault}))
    elif not chain.fault:
        whole = f"{chain.entries:,} entries: the chain is whole, up to {chain.last_id}:{chain.last_hash}"
        Screen().print(whole, highlight=False, soft_wrap=True)
    if chain.fault:
        say(f"the chain is broken: {chain.fault}; the {chain.entries:,} entries before are as written")
        raise typer.Exit(1)


def print_entries(entries: Sequence[Entry], *, as_json: bool) -> None:
    """As one document, or as a table for people."""
    table = Table("id", "time (UTC)", "who", "from", "what", "on", "outcome", "detail")
    for entry in entries:
        table.add_row(*map(escape, _cells(entry)))
    printing.show({"entries": entries}, table, as_json=as_json)


def _print_lines(entries: Sequence[Entry], *, as_json: bool) -> None:
    for entry in entries:
        typer.echo(json.dumps(entry) if as_json else "  ".join(filter(None, _cells(entry))))


def _cells(entry: Entry) -> tuple[str, ...]:
    digest = f" {entry['digest'][:12]}" if entry["digest"] else ""
    return (
        entry["id"],
        entry["time"][:19].replace("T", " "),
        entry["principal"],
        entry["peer"],
        entry["method"].rpartition("/")[2],
        entry["resource"] + digest,
        f"{entry['code']} {entry['reason']}".strip(),
        entry["detail"],
    )


def _widest(client: "Client") -> str:
    """All tenants for an operator, the own one for others."""
    from adamix_client import ALL_TENANTS

    return ALL_TENANTS if "admin" in client.who_am_i().rights else ""
