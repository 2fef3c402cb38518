"""`adamix keys`: who may call.

Thin, as the other commands: parse, call one function, print. The secret of a new key goes to stdout, once, and to
nothing else; libraries are imported inside, so that `--help` answers at once.
"""

import json
import re
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from adamix.cli.lazy import family
from adamix.cli.terminal import JsonFlag, exit_codes, stderr
from adamix.errors import InvalidConfig
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.cli.printing import day_and_time, show
from adamix_server.config import DEFAULT_TENANT

if TYPE_CHECKING:
    from adamix_server.access.rights import Right

app = family("Make, list and revoke keys.")

TenantOption = Annotated[str, typer.Option(help="Whose.  [default: the caller's own]")]

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_KEY_NAME = "keys/"


@app.command()
def create(
    role: Annotated[str, typer.Option(help="caller, publisher, owner or operator.")] = "",
    rights: Annotated[
        str, typer.Option(help="In place of a role: infer, read, register, operate, keys or admin, with commas.")
    ] = "",
    tenant: Annotated[str, typer.Option(help="For whom it calls.  [default: the caller's own]")] = "",
    tasks: Annotated[str, typer.Option(help="Only tasks with ids like this, e.g. support-*.  [default: all]")] = "",
    network: Annotated[
        list[str] | None,
        typer.Option(help="Only from this network, e.g. 10.0.0.0/8; repeatable.  [default: from anywhere]"),
    ] = None,
    expires: Annotated[str, typer.Option(help="After so long, e.g. 90d, 12h or 30m.  [default: never]")] = "",
    name: Annotated[str, typer.Option(help="What people call it.")] = "",
    certificate: Annotated[
        str, typer.Option(help="Without a secret, for who shows a certificate with this SPIFFE id or subject.")
    ] = "",
    store: Annotated[
        Path | None, typer.Option(help="Ask no server, but the store of one that is stopped: its directory.")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Make a key and print it: it is shown this once, and stored nowhere."""
    with exit_codes():
        from adamix.errors import InvalidRequest
        from adamix_server.access.rights import ROLES, check_rights

        if bool(role) == bool(rights):
            raise InvalidConfig("say either --role or --rights", field="role")
        if role and role not in ROLES:
            raise InvalidConfig(f"--role {role}: there are {', '.join(ROLES)}", field="role")
        try:
            given = ROLES[role] if role else check_rights([word.strip() for word in rights.split(",")], "--rights")
        except InvalidRequest as error:
            raise InvalidConfig(error.message, field="rights") from None
        end = _end(expires)
        if store is not None:
            new = _create_in(store, tenant or DEFAULT_TENANT, given, tasks, network or (), end, name, certificate)
        else:
            with connect(server, api_key_file) as client:
                made = client.create_key(
                    tenant=tenant,
                    rights=sorted(given),
                    task_pattern=tasks,
                    networks=network or (),
                    display_name=name,
                    expire_time=end,
                    certificate_name=certificate,
                )
            new = _New(made.key.id, made.key.tenant, made.secret, end)
        _print_new(new, role, ", ".join(sorted(given)), as_json=json_)


@app.command("list")
def list_(
    tenant: TenantOption = "",
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """List the keys of a tenant, the last made first, also those that are revoked. No secret is told."""
    with exit_codes(), connect(server, api_key_file) as client:
        found = client.keys(tenant)
        table = Table(Column("id", no_wrap=True), "role", "tasks", "networks", "name", "created", "ends", "last used")
        for key in found:
            ends = f"revoked {day_and_time(key.revoke_time)}" if key.revoke_time else day_and_time(key.expire_time)
            table.add_row(
                key.id,
                key.role or ", ".join(key.rights),
                escape(key.task_pattern),
                ", ".join(key.networks),
                escape(key.display_name or key.certificate_name),
                day_and_time(key.create_time),
                ends,
                key.last_used_date,
            )
        show({"keys": [key.json for key in found]}, table, as_json=json_)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="Its id: the letters between the two `_` of a key.")],
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """End a key for good. When this returns, the server refuses it everywhere."""
    with exit_codes():
        if key.startswith("adx_"):
            # It is not repeated: it stands in too many places already.
            raise InvalidConfig("say the id alone, the letters between the two _ of the key", field="key")
        with connect(server, api_key_file) as client:
            own = client.who_am_i().principal
            row = client.revoke_key(key.removeprefix(_KEY_NAME))
        is_own = own == f"{_KEY_NAME}{row.id}"
        note = "; it was the one that this command has shown" if is_own else ""
        show({"keys": [row.json]}, f"{row.id} of tenant {row.tenant} is revoked{note}", as_json=json_)


@dataclass(frozen=True)
class _New:
    """A key that was just made; `end` is None for never."""

    id: str
    tenant: str
    secret: str = field(repr=False)
    end: datetime | None


def _create_in(
    store: Path,
    tenant: str,
    rights: "frozenset[Right]",
    tasks: str,
    networks: Collection[str],
    end: datetime | None,
    name: str,
    certificate: str,
) -> _New:
    """A key in the store of a server that is stopped."""
    from adamix_server.access import api_keys
    from adamix_server.catalog.stopped import keys_of_stopped

    secret, key = ("", None) if certificate else api_keys.make()
    with keys_of_stopped(store) as keys:
        row = keys.create(
            tenant,
            key,
            rights=rights,
            task_pattern=tasks,
            networks=tuple(networks),
            display_name=name,
            expire_time_us=None if end is None else int(end.timestamp()) * 1_000_000,
            certificate_name=certificate,
        )
    return _New(row.id, row.tenant, secret, end)


def _print_new(new: _New, role: str, rights: str, *, as_json: bool) -> None:
    """Say a new key: alone on stdout, what it is on stderr; or all of it as a document."""
    expires = None if new.end is None else new.end.isoformat()
    if as_json:
        document = {"id": new.id, "secret": new.secret, "tenant": new.tenant, "role": role, "expires": expires}
        typer.echo(json.dumps(document))
        return
    until = f"until {expires}" if expires else "until it is revoked"
    _say(f"key {new.id}: {role or rights} of tenant {new.tenant}, {until}")
    if new.secret:
        typer.echo(new.secret)
        _say(
            "This line is shown only now. Keep it in a file that its user alone can read, and name the file with "
            "--api-key-file, or put the line in ADAMIX_API_KEY"
        )
    else:
        typer.echo(new.id)
        _say("It has no secret: whoever shows the certificate has it")


def _say(text: str) -> None:
    stderr.print(escape(text), soft_wrap=True)


def parse_duration(text: str, flag: str) -> int:
    """Seconds of `90d`, `12h`, `30m` or `45s`. Raises InvalidConfig, for the setting `flag`."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None or int(found[1]) == 0:
        raise InvalidConfig(f"{flag} {text}: say a number and a unit, such as 90d, 12h or 30m", field=flag)
    return int(found[1]) * _UNITS_S[found[2]]


def _end(expires: str) -> datetime | None:
    """When a key that is made now ends; None for never. Raises InvalidConfig."""
    if not expires:
        return None
    try:
        return datetime.fromtimestamp(int(time.time()) + parse_duration(expires, "--expires"), UTC)
    except (ValueError, OverflowError):
        raise InvalidConfig(
            f"--expires {expires} is after the year 9999; leave it out for never", field="expires"
        ) from None
