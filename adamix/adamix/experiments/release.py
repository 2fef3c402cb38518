"""What becomes of a finished training: merged, measured on rows it has not seen, judged, and perhaps published.

`Release.prepare` finds out before the training what would make all of it useless; `Release.finish` never raises for a
verdict or for a server, because the merged file is there whatever they say. Where adapters are published to is a
`Publisher`'s affair: nothing here knows a server.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from adamix.config import HeadConfig
from adamix.data import SPLITS, TaskData
from adamix.data.named import load_rows
from adamix.errors import AdamixError, FailedPrecondition, InvalidConfig, InvalidData
from adamix.evaluation import labelled
from adamix.evaluation.metrics import score
from adamix.experiments.gates import Gate, Verdict, baseline, check_metric_names, judge
from adamix.experiments.run import Finished, Prepared
from adamix.files import adapter_file, disk
from adamix.files.manifest import BackboneSpec
from adamix.generation.beam_search import TOKEN_METRICS
from adamix.merging.merge import merge
from adamix.rows.labelled import target_tensor

ADAPTER_FILE = "adapter.safetensors"


@dataclass(frozen=True)
class Published:
    """A version as it was registered; `already_exists` says that the task had one of the same bytes."""

    version: str
    already_exists: bool


class Publisher(Protocol):
    """Where adapters go when their gates hold."""

    def check(self, task: str, backbone: BackboneSpec, head: HeadConfig) -> None:
        """Raise what would make `publish` fail for every adapter of this backbone with such a head."""

    def live_metrics(self, task: str, data: str) -> Sequence[Mapping[str, float]]:
        """The validation metrics of every version of the task that answers now; raises where they are of other data
        than `data`."""

    def has(self, task: str, digest: str) -> bool:
        """Whether this version of the task is there."""

    def publish(self, task: str, file: Path) -> Published:
        """Make this file the task's live version. The same file again changes nothing."""

    def command(self, task: str, file: Path) -> str:
        """What to type to publish this file by hand."""


@dataclass(frozen=True)
class Released:
    """What a release did.

    Attributes:
        file: the merged adapter.
        metrics: of that file on `rows` rows of `split`.
        published: None where it was not.
        failure: why it was not, where it should have been; None where all went well.
    """

    file: Path
    digest: str
    split: str
    rows: int
    metrics: dict[str, float]
    verdicts: list[Verdict] = field(default_factory=list)
    published: Published | None = None
    failure: AdamixError | None = None

    @property
    def holds(self) -> bool:
        """Whether every gate does."""
        return all(verdict.holds for verdict in self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for `finite_json`."""
        return {
            "registered": self.published is not None,
            "version": None if self.published is None else self.published.version,
            "already_exists": self.published is not None and self.published.already_exists,
            "file": str(self.file),
            "digest": self.digest,
            "split": self.split,
            "rows": self.rows,
            "metrics": self.metrics,
            "gate": {
                "holds": self.holds,
                "verdicts": [{**asdict(verdict), "holds": verdict.holds} for verdict in self.verdicts],
            },
            "error": None if self.failure is None else self.failure.message,
        }


class Release:
    """The release of one training.

    Args:
        task: the id that clients call; of use to the publisher alone.
        gates: all must hold.
        split: the rows to measure on: `validation` or `test`.
        publisher: None to stop at the verdict.

    Raises:
        InvalidConfig: these do not go together.
    """

    def __init__(self, task: str, gates: Sequence[Gate], split: str, publisher: Publisher | None) -> None:
        if split not in SPLITS or split == "train":
            raise InvalidConfig(f"an adapter is judged on validation or test, not on {split[:40]!r}", field="split")
        if split != "validation" and any(gate.kind == "no-worse" for gate in gates):
            raise InvalidConfig(
                "versions tell what they scored on validation: no-worse cannot compare on another split", field="gate"
            )
        self._task = task
        self._gates = tuple(gates)
        self._split = split
        self._publisher = publisher
        self._held_out: TaskData | None = None

    def prepare(self, training: Prepared) -> None:
        """Refuse, before the training, what could not be released after it.

        The held-out rows come from the same data set. Where its rows are texts to be generated, the verdict is on what
        the training itself measures.

        Raises:
            InvalidConfig: a gate is on a metric that the task does not have.
            InvalidData: there are no held-out rows.
            AdamixError: whatever the publisher refuses.
        """
        plan, rows = training.plan, training.rows
        if self._publisher is not None:
            self._publisher.check(self._task, training.backbone.spec, plan.head)
        if not isinstance(rows, TaskData):
            if self._split != "validation":
                raise InvalidConfig("texts to be generated are judged on validation alone", field="split")
            check_metric_names(self._gates, TOKEN_METRICS)
            return
        held_out = load_rows(plan.data, split=self._split, task_type=rows.task_type)
        if not isinstance(held_out, TaskData):
            raise InvalidData(f"{held_out.name} has no labels to judge by")
        self._held_out = held_out
        check_metric_names(self._gates, _metric_names(held_out))
        self._live_metrics(rows.name)

    def finish(self, training: Finished) -> Released:
        """Merge by the mean, measure, judge, and publish if every gate holds.

        The adapter is written into the directory of the training. What that measured on the validation split, if
        anything, is not measured again.
        """
        merged = merge(training.out)
        file = training.out / ADAPTER_FILE
        disk.write(file, merged)
        adapter = adapter_file.decode(merged)
        held_out, metrics, prepared = self._held_out, dict(training.result.metrics), training.prepared
        if held_out is not None and (self._split != "validation" or not metrics):
            metrics = labelled.evaluate(adapter, prepared.backbone, prepared.tokenizer, held_out).metrics
        verdicts: list[Verdict] = []
        published: Published | None = None
        failure: AdamixError | None = None
        try:
            constant = None if held_out is None else baseline(held_out)
            verdicts = judge(self._gates, metrics, constant, self._live_metrics(prepared.rows.name))
            reasons = [verdict.reason for verdict in verdicts if not verdict.holds]
            if reasons:
                failure = FailedPrecondition(
                    f"not {'registered' if self._publisher else 'good enough'}: {'; '.join(reasons)}",
                    reason="GATE_FAILED",
                )
            elif self._publisher is not None:
                published = self._publisher.publish(self._task, file)
        except AdamixError as error:
            failure = error
            if self._publisher is not None:
                again = self._publisher.command(self._task, file)
                failure = type(error)(f"{error.message}; to register the adapter: {again}", reason=error.reason)
        return Released(
            file=file,
            digest=adapter.digest,
            split=self._split,
            rows=0 if held_out is None else len(held_out.examples),
            metrics=metrics,
            verdicts=verdicts,
            published=published,
            failure=failure,
        )

    def _live_metrics(self, data: str) -> Sequence[Mapping[str, float]]:
        if self._publisher is None or not any(gate.kind == "no-worse" for gate in self._gates):
            return ()
        return self._publisher.live_metrics(self._task, data)


def _metric_names(data: TaskData) -> tuple[str, ...]:
    """The metrics that these rows will be measured by: those of a perfect answer."""
    targets = target_tensor(data.examples, data.task_type, len(data.labels)).numpy()
    return tuple(score(data.task_type, targets, targets, num_labels=len(data.labels)))
