"""`adamix audit`: what was written down of a store, and whether it is still what was written.

Thin, as the other commands. It asks a server; or, with `--store`, looks into a directory, also one that a server uses,
and changes nothing.
"""

import json
import re
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adamix.cli.progress import progress
from adamix.cli.terminal import JsonFlag, Screen, exit_codes
from adamix.errors import InvalidConfig
from adamix_server.cli import audit_of_server
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.cli.printing import plain
from adamix_server.cli.store import say

if TYPE_CHECKING:
    from adamix_server.catalog.audit import EntryRow
    from adamix_server.catalog.audit_chain import Reading

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGE = re.compile(r"(\d{1,9})([smhd])")
_KNOWN = re.compile(r"(\d{1,18}):([0-9a-f]{64})")


def audit(
    tenant: Annotated[str, typer.Option(help="Only entries of this tenant.  [default: all that may be seen]")] = "",
    since: Annotated[
        str, typer.Option(help="Only newer entries: an age such as 30m, 1h or 7d, or a time.  [default: all]")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, help="The newest ones alone, so many.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="Then each as it is written, until Ctrl-C.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check that nothing was changed, removed or added.")] = False,
    known: Annotated[
        str, typer.Option(help="With --verify: ID:HASH as it was printed earlier; the entry must still have that hash.")
    ] = "",
    store: Annotated[
        Path | None, typer.Option(help="Ask no server, but look into its store, which it may use meanwhile.")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Who did what, when, and how it ended. With --verify, the exit code is 1 if the audit is not as it was written.

    With --follow and --json, one document a line.
    """
    with exit_codes():
        noted, since_us = _read_known(known), read_since(since)
        if store is None:
            with connect(server, api_key_file) as client:
                if verify:
                    audit_of_server.verify(client, noted, as_json=json_)
                else:
                    audit_of_server.show(client, tenant, since_us, limit, follows=follow, as_json=json_)
        elif follow:
            raise InvalidConfig("--follow asks a server, and --store asks none", field="follow")
        elif verify:
            verify_store(store, known=noted, as_json=json_)
        else:
            list_store(store, tenant=tenant or None, since_us=since_us, limit=limit, as_json=json_)


def list_store(store: Path, *, tenant: str | None, since_us: int, limit: int, as_json: bool) -> None:
    """Print the newest entries of a store, the newest last."""
    from itertools import islice

    entries = list(islice(_newest(_reading(store), tenant, since_us), limit))[::-1]
    audit_of_server.print_entries([to_json(entry) for entry in entries], as_json=as_json)


def verify_store(store: Path, *, known: tuple[int, str] | None = None, as_json: bool) -> None:
    """Print whether the chain of a store's audit is whole. Raises typer.Exit if it is not."""
    from adamix_server.catalog.audit_chain import verify

    with progress("entries") as shown:
        verified = verify(_reading(store), known, shown.update)
    if as_json:
        typer.echo(json.dumps(plain(verified) | {"ok": verified.fault is None}))
    elif verified.fault is None:
        whole = f"{verified.entries:,} entries: the chain is whole, up to {verified.last_id}:{verified.last_hash}"
        Screen().print(whole, highlight=False, soft_wrap=True)
    if known is not None and known[0] < verified.first_id - 1:
        say(f"entry {known[0]} was removed for its age: its hash is known no more")
    if verified.fault is not None:
        say(f"the chain is broken: {verified.fault.told}; the {verified.entries:,} entries before are as written")
        raise typer.Exit(1)


def _read_known(text: str) -> tuple[int, str] | None:
    """An entry's id and hash; None of an empty text. Raises InvalidConfig."""
    if not text:
        return None
    if (found := _KNOWN.fullmatch(text)) is None:
        raise InvalidConfig(f"--known {text}: say ID:HASH, as --verify has printed it", field="known")
    return int(found[1]), found[2]


def read_since(text: str) -> int:
    """`30m`, `1h`, `7d` before now, or an ISO time, in microseconds since 1970 UTC; 0 of an empty text.

    Raises InvalidConfig.
    """
    if not text:
        return 0
    if (age := _AGE.fullmatch(text)) is not None:
        return max(0, time.time_ns() // 1_000 - int(age[1]) * _UNITS_S[age[2]] * 1_000_000)
    try:
        # A time without a zone is this machine's.
        return max(0, int(datetime.fromisoformat(text).astimezone().timestamp() * 1e6))
    except (ValueError, OverflowError, OSError):
        raise InvalidConfig(
            f"--since {text}: say an age such as 30m, 1h or 7d, or a time such as 2026-11-30T12:00", field="since"
        ) from None


def to_json(entry: "EntryRow") -> dict[str, Any]:
    """An entry as proto3 JSON writes `adamix.v1.AuditEntry`, with its names of fields."""
    from adamix_server.catalog.rows import to_datetime

    moment = to_datetime(entry.time_us)
    fraction = f".{moment:%f}" if moment.microsecond else ""
    fraction = fraction.removesuffix("000")
    return {
        "id": str(entry.id),
        "time": f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z",
        "principal": entry.principal,
        "peer": entry.peer,
        "method": entry.what,
        "resource": entry.resource,
        "digest": entry.digest,
        "code": entry.code,
        "reason": entry.reason,
        "detail": entry.detail,
        "hash": entry.hash,
        "tenant": entry.tenant,
        "action": entry.action,
        "revision": str(entry.revision),
    }


def _newest(read: "Reading", tenant: str | None, since_us: int) -> "Iterator[EntryRow]":
    from adamix_server.catalog.audit import read_page

    token = ""
    while True:
        page = read_page(read, tenant, since_us=since_us, page_size=1000, page_token=token)
        yield from page.rows
        if not (token := page.next_page_token):
            return


def _reading(store: Path) -> "Reading":
    """Transactions on the catalog of a store, which leave all of its files as they are. Raises FailedPrecondition."""
    from adamix_server.catalog.backup import no_store
    from adamix_server.catalog.database import is_absent, reading
    from adamix_server.catalog.lineage import CATALOG_FILE

    path = store / CATALOG_FILE
    if is_absent(path):
        raise no_store()
    return partial(reading, path)
