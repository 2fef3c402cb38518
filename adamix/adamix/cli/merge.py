"""`adamix merge`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adamix.cli import checks
from adamix.cli.progress import progress
from adamix.cli.terminal import (
    DeviceOption,
    JsonFlag,
    exit_codes,
    print_json,
    summary,
)
from adamix.errors import InvalidConfig
from adamix.merging.settings import DATA_METHODS, DEFAULT_DENSITY, METHODS, MergeConfig

if TYPE_CHECKING:
    from adamix.files.mixture_file import MixtureFile

_CONFIG = MergeConfig()
_DENSITIES = ", ".join(f"{method} {density:g}" for method, density in DEFAULT_DENSITY.items())
# Which methods read a flag; all others refuse it.
_READ_BY = {
    "weights": ("weighted",),
    "density": tuple(DEFAULT_DENSITY),
    "data": DATA_METHODS,
    "backbone": DATA_METHODS,
    "split": DATA_METHODS,
    "few_shot": DATA_METHODS,
    "max_rows": DATA_METHODS,
    "batch_size": DATA_METHODS,
    "steps": ("learned",),
    "lr": ("learned",),
    "seed": (*DATA_METHODS, "dare"),
}


def merge(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of a finished training.")],
    out: Annotated[Path, typer.Option(help="The adapter file to write.")],
    how: Annotated[str, typer.Option(help=f"{', '.join(METHODS[:-1])} or {METHODS[-1]}.")] = "uniform",
    weights: Annotated[str | None, typer.Option(help="weighted: one per expert, as 0.4,0.3,0.2,0.1.")] = None,
    density: Annotated[
        float | None,
        typer.Option(help=f"ties, dare: share of the changes that stay.  (default: {_DENSITIES})"),
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"{', '.join(DATA_METHODS)}: text, as for `train`.")] = None,
    backbone: Annotated[str | None, typer.Option(help="As for `train`; default: the one the mixture names.")] = None,
    split: Annotated[
        str | None, typer.Option(help="train or validation.  (default: train, and validation for greedy)")
    ] = None,
    few_shot: Annotated[
        int | None, typer.Option(help="Only the K rows that `train` takes with this --few-shot and the same --seed.")
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(help=f"Rows of the split to use, drawn by the seed.  (default: {_CONFIG.max_rows})")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help=f"Rows per forward pass.  (default: {_CONFIG.batch_size})")
    ] = None,
    steps: Annotated[int | None, typer.Option(help=f"learned: optimiser steps.  (default: {_CONFIG.steps})")] = None,
    lr: Annotated[
        float | None, typer.Option(help=f"learned: Adam's rate.  (default: {_CONFIG.learning_rate:g})")
    ] = None,
    seed: Annotated[int | None, typer.Option(help=f"Of every random choice.  (default: {_CONFIG.seed})")] = None,
    device: DeviceOption = "auto",
    json_: JsonFlag = False,
) -> None:
    """Merge a mixture into one adapter file."""
    with exit_codes():
        given = {
            "weights": weights,
            "density": density,
            "data": data,
            "backbone": backbone,
            "split": split,
            "few_shot": few_shot,
            "max_rows": max_rows,
            "batch_size": batch_size,
            "steps": steps,
            "lr": lr,
            "seed": seed,
        }
        _check_flags(how, {name for name, value in given.items() if value is not None})
        shares = None if weights is None else _numbers(weights)
        settings = {
            "density": density,
            "max_rows": max_rows,
            "batch_size": batch_size,
            "steps": steps,
            "learning_rate": lr,
            "seed": seed,
        }
        config = MergeConfig(**{name: value for name, value in settings.items() if value is not None})  # type: ignore[arg-type]  # by name
        checks.existing(directory)
        checks.device(device)
        checks.names(backbone, data, split=split)
        from adamix.files import adapter_file, disk
        from adamix.files.mixture_file import read_mixture
        from adamix.merging.merge import merge as merge_mixture

        _check_out(out, directory)
        mixture = read_mixture(directory)
        if how in DATA_METHODS and data is not None:
            chosen = split or ("validation" if how == "greedy" else "train")
            merged = _merge_by_data(mixture, how, config, data, chosen, few_shot, backbone, device)
        else:
            merged = merge_mixture(mixture, how, weights=shares, config=config)
        disk.write(out, merged)
        adapter = adapter_file.decode(merged)
        if json_:
            print_json({"file": str(out), "merge": adapter.manifest.training.merge, **summary(adapter)})
            return
        count, head = adapter.num_parameters()
        print(f"{out}: {adapter.num_bytes:,} bytes, {count:,} parameters and {head:,} in the head")
        print(f"merged by {adapter.manifest.training.merge}; sha256 {adapter.digest}")


def _merge_by_data(
    mixture: "MixtureFile",
    how: str,
    config: MergeConfig,
    data: str,
    split: str,
    few_shot: int | None,
    backbone: str | None,
    device: str,
) -> bytes:
    if split == "test":
        raise InvalidConfig(
            "an adapter that was merged by the test split could not be tested on it: use --split train or validation",
            field="split",
        )
    from adamix import data as datasets
    from adamix.backbones import backbone as backbones
    from adamix.data.named import GENERATION, few_rows, load_rows
    from adamix.evaluation import labelled
    from adamix.merging.merge import merge as merge_mixture
    from adamix.merging.samples import Samples

    manifest = mixture.manifest.adapter
    head = manifest.head
    if head.type not in (*datasets.TASK_TYPES, "cloze", "causal_lm"):
        raise InvalidConfig(
            f"--how {how} reads labels or texts, and a head of type {head.type} gives neither", field="how"
        )
    task_type = GENERATION if head.type == "causal_lm" else labelled.label_type(head)
    rows = load_rows(data, split=split, task_type=task_type)
    if few_shot is not None:
        rows = few_rows(rows, few_shot, config.seed)
    name = backbone or manifest.backbone.name
    uses_head = head.type in ("cloze", "causal_lm")
    loaded = backbones.load(name, device=backbones.device_name(device), language_model=uses_head)
    samples = Samples(loaded, backbones.load_tokenizer(name), rows)
    with progress(f"merging by {how}") as shown:
        return merge_mixture(mixture, how, samples=samples, config=config, on_progress=shown.update)


def _check_out(out: Path, directory: Path) -> None:
    """Refuse before the work is done what would lose it, or the mixture."""
    from adamix.files.mixture_file import MIXTURE_FILE

    if out.is_dir():
        raise InvalidConfig(f"--out {out} is a directory: name the file to write in it", field="out")
    if out.resolve() in (directory.resolve(), (directory / MIXTURE_FILE).resolve()):
        raise InvalidConfig(f"--out {out} is the mixture itself: give another name", field="out")


def _check_flags(how: str, given: set[str]) -> None:
    if how not in METHODS:
        raise InvalidConfig(f"--how must be one of {', '.join(METHODS)}, not {how[:40]!r}", field="how")
    for name in sorted(given):
        if how not in _READ_BY[name]:
            flag, readers = name.replace("_", "-"), ", ".join(_READ_BY[name])
            raise InvalidConfig(f"--{flag} is for --how {readers}, not for {how}", field=name)
    needed = "weights" if how == "weighted" else "data" if how in DATA_METHODS else None
    if needed is not None and needed not in given:
        raise InvalidConfig(f"--how {how} needs --{needed}", field=needed)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InvalidConfig(
            f"--weights takes one number per expert, as 0.4,0.3,0.2,0.1, not {text[:40]!r}", field="weights"
        ) from None
