"""`adamix merge`."""

from pathlib import Path
from typing import Annotated

import typer

from adamix.cli.terminal import JsonFlag, app, exit_codes, print_json, summary


@app.command()
def merge(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a finished training.")],
    out: Annotated[Path, typer.Option(help="The adapter file to write.")],
    how: Annotated[str, typer.Option(help="uniform (others come later).")] = "uniform",
    json_: JsonFlag = False,
) -> None:
    """Merge a mixture into one adapter file."""
    with exit_codes():
        from adamix import adapter_file
        from adamix.merge import merge as merge_mixture

        data = merge_mixture(directory, how)
        adapter_file.write(out, data)
        adapter = adapter_file.decode(data)
        if json_:
            print_json({"file": str(out), **summary(adapter)})
            return
        count, head = adapter.num_parameters()
        print(f"{out}: {adapter.num_bytes:,} bytes, {count:,} parameters and {head:,} in the head")
        print(f"sha256 {adapter.digest}")
