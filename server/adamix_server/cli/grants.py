"""`adamix grants`: tasks that are lent to other tenants.

Thin, as the other commands: parse, call one function, print.
"""

from typing import Annotated

import typer
from rich.table import Table

from adamix.cli.lazy import family
from adamix.cli.terminal import JsonFlag, exit_codes
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.cli.keys import TenantOption
from adamix_server.cli.printing import day_and_time, show

app = family("Lend tasks to other tenants.")

TaskArgument = Annotated[str, typer.Argument(help="Its id, or tenants/T/tasks/TASK.")]


@app.command()
def add(
    task: TaskArgument,
    to: Annotated[str, typer.Option(help="The tenant that may ask it.")],
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Let another tenant ask a task for answers, and no more."""
    with exit_codes(), connect(server, api_key_file) as client:
        grant = client.grant_task(task, to)
        show({"grants": [grant.json]}, f"{grant.task} is lent to {grant.tenant}, who calls it so", as_json=json_)


@app.command("list")
def list_(
    tenant: TenantOption = "",
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """List what a tenant has lent, and what was lent to it."""
    with exit_codes(), connect(server, api_key_file) as client:
        found = client.grants(tenant)
        table = Table("task", "lent to", "since")
        for grant in found:
            table.add_row(grant.task, grant.tenant, day_and_time(grant.create_time))
        show({"grants": [grant.json for grant in found]}, table, as_json=json_)


@app.command()
def remove(
    task: TaskArgument,
    from_: Annotated[str, typer.Option("--from", help="The tenant that may ask it no more.")],
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Take a task back."""
    with exit_codes(), connect(server, api_key_file) as client:
        client.revoke_grant(task, from_)
        show({"grants": []}, f"{task} is lent to {from_} no more", as_json=json_)
