"""`adamix info`, `health` and `drain`: a server as a whole.

Thin, as the other commands: parse, call one function, print.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from adamix.cli.terminal import JsonFlag, exit_codes
from adamix.errors import NotFound, Unavailable
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.cli.printing import plain, safe, show

if TYPE_CHECKING:
    from adamix_client import Load, ServerInfo

_SERVING = "SERVING"
_SERVICES = {
    "inference": "adamix.v1.InferenceService",
    "adapters": "adamix.v1.AdapterService",
    "admin": "adamix.v1.AdminService",
    "server": "adamix.v1.ServerService",
}


def info(server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, json_: JsonFlag = False) -> None:
    """Say what a server is, and how busy."""
    with exit_codes(), connect(server, api_key_file) as client:
        found = client.info()
        try:
            load = client.load_report()
        except Unavailable:
            load = None
        document = {**plain(found), "load": None if load is None else plain(load)}
        show(document, _table_of(found, load), as_json=json_)


def health(
    service: Annotated[
        str, typer.Option(help="inference, adapters, admin, server or a full name.  [default: the whole server]")
    ] = "",
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Say whether a server serves; the exit code is 0 if it does, else 1. Needs no key."""
    with exit_codes(), connect(server, api_key_file) as client:
        try:
            status = client.health(_SERVICES.get(service, service))
        except NotFound:
            status = "SERVICE_UNKNOWN"
        show({"status": status}, status, as_json=json_)
        if status != _SERVING:
            raise typer.Exit(1)


def drain(server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, json_: JsonFlag = False) -> None:
    """Ask a server to finish what runs and to end, as SIGTERM does. Returns at once."""
    with exit_codes(), connect(server, api_key_file) as client:
        client.drain()
        show({"draining": True}, f"{safe(server)} takes no new calls, and ends when those that run have", as_json=json_)


def _table_of(found: "ServerInfo", load: "Load | None") -> Table:
    backbone: dict[str, Any] = found.backbone
    rows = {
        "backbone": str(backbone.get("name") or backbone.get("model_type") or ""),
        "fingerprint": str(backbone.get("fingerprint", "")),
        "size": f"{backbone.get('num_layers')} layers of {backbone.get('hidden_size')}, "
        f"texts of {backbone.get('max_tokens')} tokens",
        "device": found.device,
        "computes in": found.compute_dtype
        + (f", weights in {found.quantisation}" if found.quantisation not in ("", "none") else ""),
        "version": found.server_version,
        **{name.replace("_", " "): _number(value) for name, value in found.limits.items()},
    }
    if load is None:
        rows["engine"] = "not there now"
    else:
        rows["queue"] = f"{load.queued_inputs:,} inputs, {load.queued_tokens:,} tokens"
        rows["largest batch"] = f"{load.running_inputs:,} inputs"
        rows["adapters"] = f"{load.resident_adapters:,} resident, {load.slots:,} slots"
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(name, safe(value, 100))
    return table


def _number(value: Any) -> str:
    """64-bit numbers are texts in proto3 JSON."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return f"{value:,}" if isinstance(value, int | float) else str(value)
