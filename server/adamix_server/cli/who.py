"""`adamix whoami` and `adamix usage`: what the server knows of its caller, and what a tenant has used.

Thin, as the other commands: parse, call one function, print.
"""

from rich.table import Table

from adamix.cli.terminal import JsonFlag, exit_codes
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.cli.keys import TenantOption
from adamix_server.cli.printing import day_and_time, show

# Numbers of a document, which proto3 JSON would write as texts.
_NUMBERS = ("calls", "input_tokens", "generated_tokens", "stored_bytes", "tasks", "versions")


def whoami(server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, json_: JsonFlag = False) -> None:
    """Say who the server takes this command for."""
    with exit_codes(), connect(server, api_key_file) as client:
        found = client.who_am_i()
        tasks = f", for tasks like {found.task_pattern}" if found.task_pattern else ""
        until = f", until {day_and_time(found.expire_time)} UTC" if found.expire_time else ""
        name = found.principal or "anybody (this server asks nobody who they are)"
        text = f"{name}: tenant {found.tenant}, with the rights {', '.join(found.rights)}{tasks}{until}"
        show(found.json, text, as_json=json_)


def usage(
    tenant: TenantOption = "",
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """What a tenant has used since it was made, and what it has now. Some seconds late."""
    with exit_codes(), connect(server, api_key_file) as client:
        found = client.usage(tenant)
        table = Table("", found.tenant, title=f"since {day_and_time(found.since)} UTC")
        for name in _NUMBERS:
            table.add_row(name.replace("_", " "), f"{getattr(found, name):,}")
        for reason, number in sorted(found.rejected.items()):
            table.add_row(f"refused: {reason}", f"{number:,}")
        numbers = {name: getattr(found, name) for name in _NUMBERS}
        show({**found.json, **numbers, "rejected": dict(found.rejected)}, table, as_json=json_)
