"""`adamix.merge`: the mixture of a training directory as one adapter file, as `adamix merge` makes it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamix.api.adapter import Adapter
from adamix.api.bars import progress_bar
from adamix.api.sources import Data, source_of
from adamix.api.words import named_as_arguments
from adamix.errors import InvalidConfig
from adamix.experiments.merges import check, merge_directory

if TYPE_CHECKING:
    from adamix.experiments.run import Backbones


def merge(
    directory: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    how: str = "uniform",
    weights: Sequence[float] | None = None,
    density: float | None = None,
    data: Data = None,
    backbone: str | os.PathLike[str] | None = None,
    split: str | None = None,
    few_shot: int | None = None,
    max_rows: int | None = None,
    batch_size: int | None = None,
    steps: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    device: str = "auto",
    card: bool = False,
    progress: bool = True,
) -> Adapter:
    """Merge a mixture into one adapter file.

    Args:
        directory: of a finished training.
        out: the file to write.
        how: uniform, weighted, learned, greedy, fisher, regmean, ties or dare.
        weights: of weighted: one per expert.
        density: of ties and dare: the share of the changes that stay.
        data: learned, greedy, fisher, regmean: text, as for `fit`.
        backbone: of those as well; None is the one that the mixture names.
        split: of the data: train or validation.
        few_shot: of the data only the rows that `fit` takes with this `few_shot` and the same seed.
        max_rows, batch_size: of the data: rows to use, and rows per forward pass.
        steps, lr: of learned.
        seed: of every random choice.
        card: write a model card, `README.md`, beside the file; not over one that somebody else wrote.

    Raises:
        InvalidConfig, InvalidData, InvalidAdapter, FailedPrecondition: as the command.
    """
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
    return merge_with(Path(directory), Path(out), how, given, None, device=device, card=card, progress=progress)


def merge_with(
    directory: Path,
    out: Path,
    how: str,
    given: dict[str, Any],
    backbones: "Backbones | None",
    *,
    device: str,
    card: bool,
    progress: bool,
) -> Adapter:
    """As `merge`, on backbones that may be loaded already."""
    with named_as_arguments():
        config = check(how, given)
        if (weights := given["weights"]) is not None:
            _check_weights(weights)
        if card:
            from adamix.reports.card import check_card

            check_card(out)
        backbone = None if given["backbone"] is None else os.fspath(given["backbone"])
        with progress_bar(f"merging by {how}", shown=progress) as advance:
            adapter = merge_directory(
                directory,
                out,
                how,
                config,
                weights=weights,
                data=None if given["data"] is None else source_of(given["data"]),
                split=given["split"],
                few_shot=given["few_shot"],
                backbone=backbone,
                device=device,
                backbones=backbones,
                on_progress=advance,
            )
        if card:
            from adamix.reports.card import write_card

            write_card(out, adapter)
        return Adapter(out, adapter, backbone or adapter.manifest.backbone.name, device, backbones)


def _check_weights(weights: Any) -> None:
    is_list = isinstance(weights, Sequence) and not isinstance(weights, str)
    if not is_list or not all(isinstance(weight, int | float) for weight in weights):
        raise InvalidConfig(f"weights are one number per expert, not {weights!r:.40}", field="weights")
