"""Merge the mixture of a training directory into an adapter file: what the command and a program ask for alike.

`check` finds wrong settings before anything heavy is imported; `merge_directory` reads, merges and writes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamix.errors import InvalidConfig
from adamix.merging.settings import DATA_METHODS, DEFAULT_DENSITY, METHODS, MergeConfig

if TYPE_CHECKING:
    from adamix.data.named import Source
    from adamix.experiments.run import Backbones
    from adamix.files.adapter_file import AdapterFile
    from adamix.files.mixture_file import MixtureFile
    from adamix.merging.samples import OnProgress

# Which methods read a setting; all others refuse it.
READ_BY: Mapping[str, tuple[str, ...]] = {
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
# Those that are fields of `MergeConfig`, by their names there.
_FIELDS = {
    "density": "density",
    "max_rows": "max_rows",
    "batch_size": "batch_size",
    "steps": "steps",
    "lr": "learning_rate",
    "seed": "seed",
}


def check(how: str, given: Mapping[str, Any]) -> MergeConfig:
    """The configuration of a merge by the settings of `READ_BY` that were given; None is not given.

    Raises:
        InvalidConfig: there is no such method, it does not read a setting or lacks one, or a value is out of range.
    """
    if how not in METHODS:
        raise InvalidConfig(f"--how must be one of {', '.join(METHODS)}, not {how[:40]!r}", field="how")
    names = {name for name, value in given.items() if value is not None}
    for name in sorted(names):
        if how not in READ_BY[name]:
            flag, readers = name.replace("_", "-"), ", ".join(READ_BY[name])
            raise InvalidConfig(f"--{flag} is for --how {readers}, not for {how}", field=name)
    needed = "weights" if how == "weighted" else "data" if how in DATA_METHODS else None
    if needed is not None and needed not in names:
        raise InvalidConfig(f"--how {how} needs --{needed}", field=needed)
    if given.get("split") == "test":
        raise InvalidConfig(
            "an adapter that was merged by the test split could not be tested on it: use --split train or validation",
            field="split",
        )
    return MergeConfig(**{field: given[name] for name, field in _FIELDS.items() if name in names})


def merge_directory(
    directory: Path,
    out: Path,
    how: str,
    config: MergeConfig,
    *,
    weights: Sequence[float] | None = None,
    data: "Source | None" = None,
    split: str | None = None,
    few_shot: int | None = None,
    backbone: str | None = None,
    device: str = "auto",
    backbones: "Backbones | None" = None,
    on_progress: "OnProgress | None" = None,
) -> "AdapterFile":
    """Merge, write the file, and say what is in it. The settings are those that `check` has seen.

    Raises:
        InvalidConfig: `out` is a directory or the mixture itself; or as `merging.merge.merge`.
        InvalidAdapter, InvalidData, FailedPrecondition: as there.
    """
    from adamix.files import adapter_file, disk
    from adamix.files.mixture_file import read_mixture
    from adamix.merging.merge import merge

    _check_out(out, directory)
    mixture = read_mixture(directory)
    if how in DATA_METHODS and data is not None:
        chosen = split or ("validation" if how == "greedy" else "train")
        merged = _by_data(mixture, how, config, data, chosen, few_shot, backbone, device, backbones, on_progress)
    else:
        merged = merge(mixture, how, weights=weights, config=config)
    disk.write(out, merged)
    return adapter_file.decode(merged)


def _by_data(
    mixture: "MixtureFile",
    how: str,
    config: MergeConfig,
    data: "Source",
    split: str,
    few_shot: int | None,
    backbone: str | None,
    device: str,
    backbones: "Backbones | None",
    on_progress: "OnProgress | None",
) -> bytes:
    from adamix import data as datasets
    from adamix.backbones.backbone import device_name, load_tokenizer
    from adamix.data.named import GENERATION, few_rows, load_rows
    from adamix.evaluation import labelled
    from adamix.experiments.run import Backbones
    from adamix.merging.merge import merge
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
    loaded = (backbones or Backbones()).load(
        name, device_name(device), language_model=head.type in ("cloze", "causal_lm")
    )
    samples = Samples(loaded, load_tokenizer(name), rows)
    return merge(mixture, how, samples=samples, config=config, on_progress=on_progress)


def _check_out(out: Path, directory: Path) -> None:
    """Refuse before the work is done what would lose it, or the mixture."""
    from adamix.files.mixture_file import MIXTURE_FILE

    if out.is_dir():
        raise InvalidConfig(f"--out {out} is a directory: name the file to write in it", field="out")
    if out.resolve() in (directory.resolve(), (directory / MIXTURE_FILE).resolve()):
        raise InvalidConfig(f"--out {out} is the mixture itself: give another name", field="out")
