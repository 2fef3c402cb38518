"""`adamix import` and `adamix export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from adamix.cli import checks
from adamix.cli.lazy import family
from adamix.cli.terminal import JsonFlag, exit_codes, print_json, stderr, summary
from adamix.data.task import TASK_TYPES
from adamix.errors import InvalidConfig
from adamix.experiments.settings import read_interval
from adamix.hub import nearest

if TYPE_CHECKING:
    from adamix.interop.assembly import Imported, ImportOptions

imports = family("Make an adapter file of what another library trained.")
exports = family("Write an adapter for another library.")

DirectoryArgument = Annotated[Path, typer.Argument(metavar="SRC", help="Directory that the library saved.")]
BackboneOption = Annotated[str, typer.Option(help="The backbone it was trained on, as for `train`.")]
OutOption = Annotated[Path, typer.Option(help="The adapter file to write.")]
LabelsOption = Annotated[
    str | None, typer.Option(help="Label names, comma-separated, in the order of the outputs.  (default: LABEL_i)")
]
TaskTypeOption = Annotated[
    str | None, typer.Option(help="classification, multilabel or regression.  (default: by the number of outputs)")
]
MaxLengthOption = Annotated[int | None, typer.Option(help="Tokens per text.  (default: 128)")]
PoolingOption = Annotated[str | None, typer.Option(help="mean, cls or last: import for embeddings, without a head.")]
ClipOption = Annotated[str | None, typer.Option(help="LOW,HIGH: cut a regression's predictions to this interval.")]


@imports.command()
def peft(
    source: DirectoryArgument,
    backbone: BackboneOption,
    out: OutOption,
    labels: LabelsOption = None,
    task_type: TaskTypeOption = None,
    max_length: MaxLengthOption = None,
    pooling: PoolingOption = None,
    clip: ClipOption = None,
    json_: JsonFlag = False,
) -> None:
    """Import a LoRA directory of PEFT."""
    with exit_codes():
        _check(source, backbone, out, task_type)
        options = _options(labels, task_type, max_length, pooling, clip)
        from adamix.backbones import backbone as backbones
        from adamix.interop.peft.weights import import_peft

        _finish(import_peft(source, backbones.load(backbone), options), out, json_)


@imports.command()
def adapterhub(
    source: DirectoryArgument,
    backbone: BackboneOption,
    out: OutOption,
    labels: LabelsOption = None,
    task_type: TaskTypeOption = None,
    max_length: MaxLengthOption = None,
    pooling: PoolingOption = None,
    clip: ClipOption = None,
    json_: JsonFlag = False,
) -> None:
    """Import a bottleneck adapter of AdapterHub."""
    with exit_codes():
        _check(source, backbone, out, task_type)
        options = _options(labels, task_type, max_length, pooling, clip)
        from adamix.backbones import backbone as backbones
        from adamix.interop.adapterhub.weights import import_adapterhub

        _finish(import_adapterhub(source, backbones.load(backbone), options), out, json_)


@imports.command("microsoft-adamix")
def microsoft_adamix(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="File that the release of AdaMix wrote.")],
    backbone: BackboneOption,
    out: OutOption,
    labels: LabelsOption = None,
    task_type: TaskTypeOption = None,
    max_length: MaxLengthOption = None,
    clip: ClipOption = None,
    alpha: Annotated[
        float | None, typer.Option(help="Alpha of LoRA experts, which is not in the file; the release's is 32.")
    ] = None,
    mixture: Annotated[
        Path | None, typer.Option(help="Write the experts too, into this new or empty directory, as `train` does.")
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Import a file of the AdaMix release, and check it against the release's formula."""
    with exit_codes():
        _check(source, backbone, out, task_type)
        options = _options(labels, task_type, max_length, None, clip)
        if mixture is not None and mixture.exists() and (not mixture.is_dir() or any(mixture.iterdir())):
            raise InvalidConfig(f"--mixture: {mixture} is not an empty directory", field="mixture")
        from adamix.backbones import backbone as backbones
        from adamix.files import disk
        from adamix.files.mixture_file import MIXTURE_FILE
        from adamix.interop.microsoft_adamix.weights import import_release

        loaded = backbones.load(backbone)
        normalizer = backbones.load_tokenizer(backbone).backend_tokenizer.normalizer
        is_uncased = normalizer is not None and normalizer.normalize_str("A") == normalizer.normalize_str("a")
        result = import_release(source, loaded, options, alpha=alpha, is_uncased=is_uncased)
        if mixture is not None and result.mixture is not None:
            disk.write(mixture / MIXTURE_FILE, result.mixture.encode())
        _finish(result, out, json_)


@exports.command("peft")
def export_peft(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Adapter file of a LoRA.")],
    out: Annotated[Path, typer.Option(help="The directory to write, new or empty.")],
    body_only: Annotated[bool, typer.Option("--body-only", help="Leave the head out.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Write a LoRA as a directory that PEFT reads."""
    with exit_codes():
        checks.existing(file)
        from adamix.files import adapter_file
        from adamix.interop.peft.export import export_peft as export

        result = export(adapter_file.read(file), out, body_only=body_only)
        _print_notes(result.notes)
        if json_:
            files = [path.name for path in result.files]
            print_json({"directory": str(out), "files": files, "task_type": result.task_type, "notes": result.notes})
            return
        print(f"{out}: {result.task_type}, {', '.join(path.name for path in result.files)}")


def _check(source: Path, backbone: str, out: Path, task_type: str | None) -> None:
    """Refuse before the libraries are loaded what cannot be imported."""
    checks.existing(source)
    if out.is_dir():
        raise InvalidConfig(f"--out {out} is a directory: name the file to write in it", field="out")
    if task_type is not None and task_type not in TASK_TYPES:
        raise InvalidConfig(
            f"--task-type must be one of {', '.join(TASK_TYPES)}{nearest(task_type, TASK_TYPES)}", field="task_type"
        )
    checks.names(backbone)


def _options(
    labels: str | None, task_type: str | None, max_length: int | None, pooling: str | None, clip: str | None
) -> "ImportOptions":
    from adamix.interop.assembly import ImportOptions

    return ImportOptions(
        labels=None if labels is None else tuple(name.strip() for name in labels.split(",")),
        task_type=task_type,  # type: ignore[arg-type]  # checked by the dataclass
        max_length=max_length,
        pooling=pooling,  # type: ignore[arg-type]  # checked by the dataclass
        clip=None if clip is None else read_interval(clip),
    )


def _finish(result: "Imported", out: Path, json_: bool) -> None:
    """Write the file; progress and notes to stderr, the result to stdout."""
    from adamix.files import disk

    stderr.print(f"tensors: {result.matched} matched, 0 missing, 0 surplus")
    if result.max_abs_diff is not None:
        stderr.print(f"self-test: at most {result.max_abs_diff:.2g} from the release's formula")
    _print_notes(result.notes)
    disk.write(out, result.data)
    adapter = result.adapter
    if json_:
        document: dict[str, Any] = {"file": str(out), **summary(adapter)}
        document["keys"] = {"matched": result.matched, "missing": 0, "surplus": 0}
        if result.max_abs_diff is not None:
            document["self_test"] = {"max_abs_diff": result.max_abs_diff}
        print_json({**document, "notes": list(result.notes)})
        return
    count, head = adapter.num_parameters()
    print(f"{out}: {adapter.num_bytes:,} bytes, {count:,} parameters and {head:,} in the head")
    print(f"sha256 {adapter.digest}")


def _print_notes(notes: tuple[str, ...]) -> None:
    for note in notes:
        stderr.print(f"note: {escape(note)}", soft_wrap=True)
