"""`adamix tenants`: who shares the server, and how much of it each may have.

Thin, as the other commands: parse, call one function, print.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from adamix.cli.lazy import family
from adamix.cli.terminal import JsonFlag, exit_codes
from adamix.errors import InvalidConfig, InvalidRequest
from adamix_server.access.quotas import QUOTA_NAMES, check_weight, parse_quotas
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.cli.printing import day_and_time, show

if TYPE_CHECKING:
    from adamix_client import Tenant

app = family("Make, change and delete tenants.")

TenantArgument = Annotated[str, typer.Argument(metavar="T", help="Its id.")]
WeightOption = Annotated[
    int | None, typer.Option(help="Share of the device among those who want it now, 1 to 1000.  [default: 1]")
]
ClassOption = Annotated[
    str | None, typer.Option("--class", help="interactive, or batch: takes what others leave.  [default: interactive]")
]
QuotaOption = Annotated[
    list[str] | None,
    typer.Option(help="NAME=VALUE, a hard limit, e.g. max_tasks=100; repeatable.  [default: the server's]"),
]


@app.command()
def create(
    tenant: TenantArgument,
    weight: WeightOption = None,
    service_class: ClassOption = None,
    quota: QuotaOption = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Make a tenant. Its first key makes `adamix keys create --tenant T`."""
    with exit_codes():
        _check(weight)
        quotas = parse_quotas(quota or (), "--quota").to_map()
        with connect(server, api_key_file) as client:
            made = client.create_tenant(tenant, weight=weight or 0, service_class=service_class or "", quotas=quotas)
        _show([made], as_json=json_)


@app.command("list")
def list_(server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, json_: JsonFlag = False) -> None:
    """List all tenants."""
    with exit_codes(), connect(server, api_key_file) as client:
        _show(client.tenants(), as_json=json_)


@app.command("show")
def show_(
    tenant: TenantArgument,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Show one tenant."""
    with exit_codes(), connect(server, api_key_file) as client:
        _show([client.get_tenant(tenant)], as_json=json_)


@app.command("set")
def set_(
    tenant: TenantArgument,
    weight: WeightOption = None,
    service_class: ClassOption = None,
    quota: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE, or NAME= for the server's default; repeatable. Others stay as they are."),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Change a tenant: what is said, and nothing else."""
    with exit_codes():
        _check(weight)
        quotas = _changed(quota or ())
        if weight is None and service_class is None and not quotas:
            raise InvalidConfig("say what to change: --weight, --class or --quota")
        with connect(server, api_key_file) as client:
            changed = client.update_tenant(tenant, weight=weight, service_class=service_class, quotas=quotas)
        _show([changed], as_json=json_)


@app.command()
def delete(
    tenant: TenantArgument,
    force: Annotated[bool, typer.Option("--force", help="Also with tasks: they are deleted with it.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Delete a tenant, its keys and its grants."""
    with exit_codes(), connect(server, api_key_file) as client:
        client.delete_tenant(tenant, force=force)
        show({"tenants": []}, f"{tenant} is deleted", as_json=json_)


def _changed(quotas: Sequence[str]) -> dict[str, int | None]:
    """Quotas that are set, and those that are taken back. Raises InvalidConfig."""
    gone = [text.removesuffix("=") for text in quotas if text.endswith("=")]
    if unknown := [name for name in gone if name not in QUOTA_NAMES]:
        raise InvalidConfig(f"--quota {unknown[0]}=: there are {', '.join(QUOTA_NAMES)}", field="quota")
    given = parse_quotas([text for text in quotas if not text.endswith("=")], "--quota").to_map()
    return {**dict.fromkeys(gone), **given}


def _check(weight: int | None) -> None:
    try:
        if weight is not None:
            check_weight(weight, "--weight")
    except InvalidRequest as error:
        raise InvalidConfig(error.message, field="weight") from None


def _show(tenants: "Sequence[Tenant]", *, as_json: bool) -> None:
    table = Table("tenant", "weight", "class", "quotas", "created")
    for row in tenants:
        quotas = "\n".join(f"{name}={value:,}" for name, value in sorted(row.quotas.items()))
        table.add_row(row.tenant, str(row.weight), row.service_class, quotas, day_and_time(row.create_time))
    show({"tenants": [row.json for row in tenants]}, table, as_json=as_json)
