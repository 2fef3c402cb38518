"""`adamix inspect`."""

from pathlib import Path
from typing import Annotated

import typer

from adamix.cli import checks
from adamix.cli.terminal import JsonFlag, exit_codes, print_json, summary


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Adapter file.")],
    json_: JsonFlag = False,
) -> None:
    """Show what an adapter file says about itself."""
    with exit_codes():
        checks.existing(file)
        from adamix.files import adapter_file

        adapter = adapter_file.read(file)
        writes = adapter.manifest.head.type == "causal_lm"
        if json_:
            prompt = {"prompt": adapter.manifest.prompt_form} if writes else {}
            print_json({**adapter.manifest.to_json(), **prompt, **summary(adapter)})
            return
        manifest, (count, head) = adapter.manifest, adapter.num_parameters()
        sites = sorted({site for _, site in adapter.sites()})
        print(f"{manifest.kind} at {', '.join(sites) or 'no site'} for {manifest.backbone.name}")
        labels = manifest.head.labels if manifest.head.type in ("classification", "multilabel", "cloze") else ()
        print(f"head: {', '.join([manifest.head.type, *labels])[:200]}")
        if writes:
            template = ", with a chat template of its own" if manifest.chat_template is not None else ""
            print(f"prompt: {manifest.prompt_form}{template}")
        print(f"training: {manifest.training.method} on {manifest.training.data}, merged by {manifest.training.merge}")
        print(f"parameters: {count:,} and {head:,} in the head; {adapter.num_bytes:,} bytes")
        print(f"sha256 {adapter.digest}")
