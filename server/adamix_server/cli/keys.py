"""`adamix keys`: who may call.

Thin, as the other commands: parse, call one function, print. The secret of a new key goes to stdout, once, and to
nothing else; libraries are imported inside, so that `--help` answers at once.
"""

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from adamix.cli import JsonFlag, exit_codes, stderr
from adamix.errors import InvalidConfig
from adamix_server.config import DEFAULT_TENANT

if TYPE_CHECKING:
    from adamix_server.catalog.access import KeyRow

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make, list and revoke keys.",
)

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@app.command()
def create(
    store: Annotated[Path, typer.Option(help="Directory of a store that no server uses.")],
    role: Annotated[str, typer.Option(help="caller, publisher, owner or operator.")],
    tenant: Annotated[str, typer.Option(help="For whom it calls.")] = DEFAULT_TENANT,
    tasks: Annotated[str, typer.Option(help="Only tasks with ids like this, e.g. support-*.  [default: all]")] = "",
    network: Annotated[
        list[str] | None,
        typer.Option(help="Only from this network, e.g. 10.0.0.0/8; repeatable.  [default: from anywhere]"),
    ] = None,
    expires: Annotated[str, typer.Option(help="After so long, e.g. 90d, 12h or 30m.  [default: never]")] = "",
    name: Annotated[str, typer.Option(help="What people call it.")] = "",
    json_: JsonFlag = False,
) -> None:
    """Make a key and print it: it is shown this once, and stored nowhere."""
    with exit_codes():
        from adamix_server.access import api_keys
        from adamix_server.access.rights import ROLES
        from adamix_server.catalog.stopped import keys_of_stopped

        if role not in ROLES:
            raise InvalidConfig(f"--role {role}: there are {', '.join(ROLES)}", field="role")
        lifetime_s = parse_duration(expires, "--expires") if expires else None
        secret, key = api_keys.make()
        with keys_of_stopped(store) as keys:
            row = keys.create(
                tenant,
                key,
                rights=ROLES[role],
                task_pattern=tasks,
                networks=tuple(network or ()),
                display_name=name,
                expire_time_us=None if lifetime_s is None else (int(time.time()) + lifetime_s) * 1_000_000,
            )
        print_new(row, role, secret, as_json=json_)


def print_new(row: "KeyRow", role: str, secret: str, *, as_json: bool) -> None:
    """Say a new key: alone on stdout, what it is on stderr; or all of it as a document."""
    expires = _expires(row)
    if as_json:
        document = {"id": row.id, "secret": secret, "tenant": row.tenant, "role": role, "expires": expires}
        typer.echo(json.dumps(document))
        return
    typer.echo(secret)
    until = f"until {expires}" if expires else "until it is revoked"
    stderr.print(escape(f"key {row.id}: {role} of tenant {row.tenant}, {until}; shown only now"), soft_wrap=True)


def parse_duration(text: str, flag: str) -> int:
    """Seconds of `90d`, `12h`, `30m` or `45s`. Raises InvalidConfig, for the setting `flag`."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None or int(found[1]) == 0:
        raise InvalidConfig(f"{flag} {text}: say a number and a unit, such as 90d, 12h or 30m", field=flag)
    return int(found[1]) * _UNITS_S[found[2]]


def _expires(row: "KeyRow") -> str | None:
    from adamix_server.catalog.rows import to_datetime

    return None if row.expire_time_us is None else to_datetime(row.expire_time_us).isoformat()
