"""What goes on around one training of the command line: where its backbone comes from, what is done before and after.

`adamix train` looks for a `TrainSession` in its context and does as it says; without one it trains and prints, no
more. A sweep brings one that keeps the backbone loaded; a package that can reach a server brings one that publishes
what was trained. Knows no server.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamix.config import HeadConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from adamix.backbone import Backbone
    from adamix.experiments.release import Release, Released


@dataclass(frozen=True)
class Prepared:
    """A training that is ready to begin.

    Attributes:
        out: the directory of the run.
        data: the data set by the name it was asked for.
        rows: the rows to train on: `TaskData`, or what a language model learns from.
        head: its settings.
    """

    out: Path
    data: str
    rows: Any
    backbone: "Backbone"
    tokenizer: "PreTrainedTokenizerFast"
    head: HeadConfig


class TrainSession:
    """Takes part in a training: the methods are called in the order they have here, and do nothing by themselves.

    Attributes:
        is_plan: end when the settings have been checked, before anything is loaded or written.
        is_silent: print no result.
    """

    is_plan: bool = False
    is_silent: bool = False

    def load_backbone(self, name: str, **how: Any) -> "Backbone":
        """The backbone to train on; arguments as of `backbone.load`, and not to be changed by anyone."""
        from adamix import backbone as backbones

        return backbones.load(name, **how)

    def before(self, prepared: Prepared) -> None:
        """Refuse what could not be finished, before any time is spent on it. Under torchrun, in every process."""

    def after(self, prepared: Prepared, document: dict[str, Any]) -> None:
        """Go on with a finished training, and add to `document`, which will be printed. In the first process alone."""

    def close(self, document: dict[str, Any], *, as_json: bool) -> None:
        """Say what `after` did, once the result of the training is printed; raise the error that it met."""


class ReleaseSession(TrainSession):
    """Merges, measures, judges and perhaps publishes what was trained; see `adamix.experiments.release`.

    Args:
        key: where the result goes in the document.
    """

    def __init__(self, release: "Release", key: str = "push") -> None:
        self._release = release
        self._key = key
        self.released: Released | None = None

    def before(self, prepared: Prepared) -> None:
        self._release.prepare(prepared.data, prepared.rows, prepared.backbone, prepared.head)

    def after(self, prepared: Prepared, document: dict[str, Any]) -> None:
        self.released = self._release.finish(
            prepared.out, prepared.rows, prepared.backbone, prepared.tokenizer, document["validation"]
        )
        document[self._key] = self.released.to_json()

    def close(self, document: dict[str, Any], *, as_json: bool) -> None:  # noqa: ARG002
        released = self.released
        if released is None:
            return
        if released.failure is not None:
            raise released.failure
        if not as_json and not self.is_silent and released.published is not None:
            note = " (was there already)" if released.published.already_exists else ""
            print(f"registered {released.published.version}{note}")
