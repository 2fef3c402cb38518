"""What `adamix.fit` gives: a finished training, to be merged, measured, pushed and reported on."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adamix.api.adapter import Adapter
from adamix.api.evaluating import HowMeasured, Measured, measure_source
from adamix.api.merging import merge_with
from adamix.api.sources import Data
from adamix.api.words import named_as_arguments
from adamix.merging.settings import DATA_METHODS
from adamix.routing.seeds import DEFAULT_SEEDS

if TYPE_CHECKING:
    from adamix.experiments.release import Released
    from adamix.experiments.run import Backbones, Finished
    from adamix.generation.decoding import Decoding


class Fitted:
    """A finished training in its directory, with the backbone it was made on.

    Attributes:
        out: the directory of the run.
        metrics: of the merged adapter on the validation rows; empty without any.
        steps: optimiser steps of the whole run, resumed parts included.
        seconds: wall time of this call's training loop.
        loss: the last reading of the training loss; nan where there were too few steps for one.
        unvalidated: why there were no validation rows, where they were asked for.
    """

    def __init__(self, finished: "Finished", backbones: "Backbones") -> None:
        self._finished = finished
        self._backbones = backbones
        self.out = finished.out
        result = finished.result
        self.metrics = dict(result.metrics)
        self.steps = result.steps
        self.seconds = result.seconds
        self.loss = result.loss
        self.unvalidated = finished.prepared.unvalidated

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items()) or "not validated"
        return f"<Fitted {self.out}: {self.steps} steps, {metrics}>"

    def __fspath__(self) -> str:
        return os.fspath(self.out)

    @property
    def document(self) -> dict[str, Any]:
        """What `adamix train --json` prints."""
        from adamix.evaluation.metrics import finite_json

        found: dict[str, Any] = finite_json(self._finished.to_json())
        return found

    def merge(
        self,
        *,
        out: str | os.PathLike[str] | None = None,
        how: str = "uniform",
        weights: Sequence[float] | None = None,
        density: float | None = None,
        data: Data = None,
        split: str | None = None,
        few_shot: int | None = None,
        max_rows: int | None = None,
        batch_size: int | None = None,
        steps: int | None = None,
        lr: float | None = None,
        seed: int | None = None,
        card: bool = False,
        progress: bool = True,
    ) -> Adapter:
        """Merge the experts into one adapter: `adamix.merge`, into the directory of the run unless `out` says another
        file. Methods that learn from text take that of the training unless `data` says another: of a training on a few
        rows, those rows.
        """
        from adamix.experiments.release import ADAPTER_FILE

        plan = self._finished.prepared.plan
        if data is None and how in DATA_METHODS:
            data = plan.data
            if plan.few_shot is not None and few_shot is None and split in (None, "train") and how != "greedy":
                few_shot, seed = plan.few_shot, plan.train.seed if seed is None else seed
        given = {
            "weights": weights,
            "density": density,
            "data": data,
            "backbone": plan.backbone if how in DATA_METHODS else None,
            "split": split,
            "few_shot": few_shot,
            "max_rows": max_rows,
            "batch_size": batch_size,
            "steps": steps,
            "lr": lr,
            "seed": seed,
        }
        name = ADAPTER_FILE if how == "uniform" else f"adapter-{how}.safetensors"
        file = self.out / name if out is None else Path(out)
        return merge_with(self.out, file, how, given, self._backbones, device=plan.device, card=card, progress=progress)

    def evaluate(
        self,
        data: Data = None,
        *,
        split: str = "test",
        routing: str = "merged",
        seeds: int | None = None,
        decoding: "str | Decoding | None" = None,
        scoring: str | None = None,
        subset: str | None = None,
        batch_size: int = 32,
        progress: bool = True,
    ) -> Measured:
        """Measure the merged adapter, or other routes through the mixture: `adamix.evaluate`, on the data of the
        training unless others are given.
        """
        plan = self._finished.prepared.plan
        how = HowMeasured(split, routing, seeds, decoding, scoring, subset, batch_size, plan.device)
        with named_as_arguments():
            rows = plan.data if data is None else data
            return measure_source(self.out, rows, plan.backbone, how, self._backbones, progress=progress)

    def push(
        self,
        server: str,
        task: str,
        *,
        gate: str | Sequence[str] | None = None,
        push_split: str | None = None,
        api_key: str | None = None,
    ) -> "Released":
        """Merge uniformly, judge, and register with a server if every gate holds: what `train --push` does.

        Args:
            server: HOST:PORT; `grpcs://HOST:PORT` for TLS.
            task: the id that clients will call.
            gate: `METRIC>=X`, `METRIC<=X`, `no-worse:METRIC` or `baseline`, or several of these; baseline if None, and
                nothing is judged if it is empty.
            push_split: the rows to judge by, validation or test; validation if None.
            api_key: None is what the environment says, as for the client (`ADAMIX_API_KEY`, `ADAMIX_CA`, …).

        Raises:
            FailedPrecondition: a gate does not hold (`GATE_FAILED`), or the server has another backbone.
            AdamixError: whatever else the server refuses, or that there is none.
        """
        with named_as_arguments():
            from adamix.api.publisher import ServerPublisher, connecting_with
            from adamix.experiments.gates import BASELINE, parse_gate
            from adamix.experiments.release import Release

            texts = [BASELINE] if gate is None else [gate] if isinstance(gate, str) else list(gate)
            # What is written wrong is said before a server is asked.
            gates = [parse_gate(text) for text in texts]
            publisher = ServerPublisher(server, connecting_with(api_key))
            release = Release(task, gates, push_split or "validation", publisher)
            release.prepare(self._finished.prepared)
            released = release.finish(self._finished)
            if released.failure is not None:
                raise released.failure
            return released

    def report(
        self,
        out: str | os.PathLike[str] | None = None,
        *,
        data: Data = None,
        split: str = "test",
        seeds: int = DEFAULT_SEEDS,
        card: bool = True,
        progress: bool = True,
    ) -> Path:
        """Write the page of `adamix report`, `report.html` in the directory of the run unless `out` says another file,
        on the data of the training unless others are given. Returns where it is.
        """
        from adamix.api.reporting import report

        plan = self._finished.prepared.plan
        page = self.out / "report.html" if out is None else Path(out)
        return report(
            self.out,
            out=page,
            data=plan.data if data is None else data,
            split=split,
            backbone=plan.backbone,
            seeds=seeds,
            device=plan.device,
            card=card,
            progress=progress,
        )
