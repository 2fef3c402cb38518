"""`adamix store`: backups of a store, and what brings one back.

Thin, as the other commands: parse, call one function of the catalog's room, print. These work on a directory and need
no server; libraries are imported inside, so that `--help` answers at once.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from adamix.cli.lazy import family
from adamix.cli.progress import progress
from adamix.cli.terminal import JsonFlag, Screen, exit_codes, stderr
from adamix_server.cli.printing import plain
from adamix_server.config import ServerConfig

app = family("Back up, restore and check a store.")

StoreOption = Annotated[Path, typer.Option(help="Directory of the adapters and the catalog.")]
# Each adapter file is named by its digest; this much of one is enough for people.
_CHARS = 12


@app.command()
def backup(
    to: Annotated[Path, typer.Option(help="Directory of the backup; one that is there is brought up to date.")],
    store: StoreOption = ServerConfig.store,
    json_: JsonFlag = False,
) -> None:
    """Copy a store, also one that a server uses. What the backup has already is not copied again."""
    with exit_codes():
        from adamix_server.catalog import backup as backups

        with progress("adapter files") as shown:
            made = backups.backup(store, to, shown.update)
        _print(plain(made), f"{_copied(made)}: revision {made.revision}, {made.copied:,} copied", as_json=json_)
        if made.set_aside:
            say(
                "the backup had versions that the store has lost, and that nobody deleted: its catalog of before is "
                f"{made.set_aside}"
            )
        if made.missing:
            digests = ", ".join(digest[:_CHARS] for digest in made.missing)
            say(f"the store itself lacks {len(made.missing)} adapter files, and so does the backup: {digests}")
            raise typer.Exit(1)


@app.command()
def restore(
    from_: Annotated[Path, typer.Option("--from", help="Directory of the backup.")],
    store: StoreOption = ServerConfig.store,
    json_: JsonFlag = False,
) -> None:
    """Make a store what its backup says, or a new one of it. No server may use it meanwhile. Deletes nothing."""
    with exit_codes():
        from adamix_server.catalog import backup as backups

        with progress("adapter files") as shown:
            made = backups.restore(store, from_, shown.update)
        aside = f"; the catalog of before is {made.set_aside}" if made.set_aside else ""
        _print(plain(made), f"{_copied(made)} restored, {made.copied:,} files copied{aside}", as_json=json_)
        if made.revocations is None:
            say(
                "there was no catalog that could say which keys were revoked after the backup: those are valid again. "
                f"Look at its {made.keys:,} keys, and revoke what should be"
            )
        elif made.revocations:
            say(f"{made.revocations:,} keys of the backup were revoked after it, and stay revoked")


@app.command()
def rebuild(
    store: StoreOption = ServerConfig.store,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would come back.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Make a lost or damaged catalog anew from the adapter files and what was noted beside them."""
    with exit_codes():
        from adamix_server.catalog import rebuild as rebuilding

        with progress("adapter files") as shown:
            found = rebuilding.rebuild(store, dry_run=dry_run, on_file=shown.update)
        table = Table("tenant", "task", "version", "registered", "bytes", "live")
        for version in found.versions:
            row = [version.tenant, version.task, version.digest[:_CHARS], f"{version.time:%Y-%m-%d %H:%M:%S}"]
            table.add_row(*row, f"{version.num_bytes:,}", "yes" if version.live else "")
        _print(plain(found), table, as_json=json_)
        for name, why in found.damaged:
            say(f"left out, {why}: {name}")
        for key in found.without_file:
            say(f"left out, its adapter file is not there: {'/'.join(key)}")
        for digest in found.without_origin:
            say(f"an adapter file of which nobody knows whose it is; register it again if it is wanted: {digest}")
        if not found.versions:
            say("nothing comes back: there is no adapter file of which it is known whose it is. Nothing was changed")
            raise typer.Exit(1)
        if found.dry_run:
            say("nothing was changed; without --dry-run this becomes the catalog")
        else:
            aside = f"; the one of before is {found.set_aside}" if found.set_aside else ""
            say(f"the catalog is made anew{aside}. Look at what is live, and set traffic and pins as they were")
            say(
                "tenants are back with their tasks, and the weights and quotas of anybody; keys and grants are not: "
                "they were only in the catalog. Make an operator's key with `adamix keys create --store` before the "
                "server starts, and new keys for everybody"
            )


@app.command()
def verify(store: StoreOption = ServerConfig.store, json_: JsonFlag = False) -> None:
    """Check a store, also one that a server uses. The exit code is 1 if anything is wrong."""
    with exit_codes():
        from adamix_server.catalog import verification

        with progress("adapter files") as shown:
            found = verification.verify(store, shown.update)
        document = plain(found) | {"ok": not found.problems}
        table = Table("reason", "what", "what to do")
        for problem in found.problems:
            table.add_row(problem.reason, escape(problem.name), escape(problem.advice))
        counts = f"{found.tasks:,} tasks, {found.versions:,} versions, {found.blobs:,} files, {found.num_bytes:,} bytes"
        _print(document, table if found.problems else f"{counts}: all is well", as_json=json_)
        if found.orphans or found.unnamed:
            say(f"{found.orphans + found.unnamed:,} files that no version names are kept for 7 days")
        if found.unfinished:
            say(f"{found.unfinished:,} registrations are noted whose version the catalog does not have")
        if found.problems:
            raise typer.Exit(1)


def _copied(made: Any) -> str:
    return f"{made.tasks:,} tasks, {made.versions:,} versions, {made.blobs:,} files, {made.num_bytes:,} bytes"


def _print(document: dict[str, Any], text: str | Table, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document))
    else:
        Screen().print(text, highlight=False, soft_wrap=isinstance(text, str))


def say(text: str) -> None:
    """A note for people, which is no result."""
    stderr.print(escape(text), soft_wrap=True)
