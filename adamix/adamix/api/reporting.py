"""`adamix.report`: the page that `adamix report` writes."""

import os
from pathlib import Path

from adamix.api.bars import progress_bar
from adamix.api.sources import Data, source_of
from adamix.api.words import named_as_arguments
from adamix.routing.seeds import DEFAULT_SEEDS


def report(
    source: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    data: Data = None,
    split: str = "test",
    backbone: str | os.PathLike[str] | None = None,
    seeds: int = DEFAULT_SEEDS,
    batch_size: int = 32,
    device: str = "auto",
    card: bool = True,
    progress: bool = True,
) -> Path:
    """Write one self-contained page on a training or an adapter, and return where it is.

    Args:
        source: the directory of a training, or an adapter file.
        out: the page to write.
        data: as for `fit`; None is the packaged corpus that was trained on, and nothing is measured if it was none.
        split: the rows to measure on: train, validation or test.
        backbone: None is the one that the adapter names.
        seeds: random routes through the mixture of a directory; 0 for none.
        batch_size: rows per forward pass.
        device: auto, cpu or cuda.
        card: write a model card, `README.md`, beside the adapter as well; one that somebody else wrote stays.

    Raises:
        InvalidConfig, InvalidData, InvalidAdapter, FailedPrecondition: as the command.
    """
    with named_as_arguments():
        from adamix.reports.write import Asked, write_report

        asked = Asked(
            source=Path(source),
            out=Path(out),
            data=None if data is None else source_of(data),
            split=split,
            backbone=None if backbone is None else os.fspath(backbone),
            seeds=seeds,
            batch_size=batch_size,
            device=device,
            card=card,
        )
        with progress_bar("measuring", shown=progress) as advance:
            return write_report(asked, on_progress=advance).page
