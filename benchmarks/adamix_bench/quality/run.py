"""Go through tuning and cells, one record after the other, in an order that keeps an unfinished run balanced.

Several processes may work on one store: each takes the next piece of work that no other has claimed.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

from adamix.errors import InvalidConfig
from adamix.training import train as trainer
from adamix_bench.quality import tuning
from adamix_bench.quality.cells import Cell, Laboratory
from adamix_bench.quality.settings import QualitySettings, Rows
from adamix_bench.quality.store import RunStore
from adamix_bench.quality.trainings import METHODS, PAIR, Choice

Watch = Callable[[str, int, int, trainer.Progress | None], None]
"""Called with what is being done, the pieces of work done and in all, and the progress of a training."""


def run(settings: QualitySettings, store: RunStore, work: Path, watch: Watch, device: str = "cpu") -> bool:
    """Do everything that is missing from the store. False if other processes still work on some of it.

    Raises:
        InvalidConfig: the store was begun with other settings, or the settings ask for more rows than there are.
        InvalidData: a corpus is not installed; the message has the command.
    """
    laboratory = Laboratory(settings, work, device)  # before anything is written: it refuses what cannot be run
    store.begin(settings.protocol())
    laboratory.begin()
    # Others wait for the steps that the first two choose. What another process is at is waited for after everything
    # else: no cell can begin before its training is tuned.
    first = PAIR if len(settings.steps) > 1 else ()
    stages = [*itertools.product((False, True), first), *itertools.product((False, True), settings.trainings)]
    for wait, training in stages:
        for cell, choice in tuning.missing(settings, training, store.records("trial")):
            name = f"tuning {cell.key} lr {choice.learning_rate:g}, {choice.steps} steps"
            with store.claimed(f"{cell.key}-{choice.learning_rate:g}-{choice.steps}", wait=wait) as is_ours:
                pending = tuning.missing(settings, training, store.records("trial"))
                if is_ours and (cell, choice) in pending:
                    total = len(tuning.wanted(settings, training, store.records("trial")))
                    tuning.run_trial(laboratory, store, cell, choice, _report(watch, name, total - len(pending), total))
    finished = True
    everything = cells(settings)
    for number, cell in enumerate(everything):
        best = tuning.chosen(settings, cell.training, store.records("trial"))
        with store.claimed(cell.key) as is_ours:
            missing = missing_methods(settings, store, cell, best)
            if is_ours and missing:
                _run_cell(laboratory, store, cell, best, missing, _report(watch, cell.key, number, len(everything)))
            finished = finished and not (missing and not is_ours)
    return finished


def cells(settings: QualitySettings) -> list[Cell]:
    """Every cell: seed by seed, and within a seed all sizes, tasks and trainings, so that pairs are complete early."""
    product = itertools.product(settings.seeds, settings.rows, settings.tasks, settings.trainings)
    return [Cell(task, rows, seed, training) for seed, rows, task, training in product]


def missing_methods(settings: QualitySettings, store: RunStore, cell: Cell, choice: Choice) -> list[str]:
    """The methods of a cell's training that are asked for and have no record.

    Raises:
        InvalidConfig: a record was trained with something else than what the tuning chooses now.
    """
    done = set()
    for record in store.records("run"):
        if (record["task"], record["rows"], record["seed"]) != (cell.task, rows_name(cell.rows), cell.seed):
            continue
        method, trained = record["method"], Choice(record["learning_rate"], record["steps"])
        if METHODS.get(method) == cell.training and trained != choice:
            raise InvalidConfig(
                f"{store.path} has a run of {method} with a learning rate of {trained.learning_rate:g} and "
                f"{trained.steps} steps, but the trials choose {choice.learning_rate:g} and {choice.steps}: name "
                "another --out, or remove such runs",
                field="out",
            )
        done.add(method)
    return [m for m in settings.methods if METHODS[m] == cell.training and m not in done]


def rows_name(rows: Rows) -> int | str:
    """The size of a training set as records name it."""
    return "all" if rows is None else rows


def _run_cell(
    laboratory: Laboratory, store: RunStore, cell: Cell, choice: Choice, methods: list[str], on_step: tuning.OnStep
) -> None:
    mixture, seconds = laboratory.train(cell, choice, on_step)
    probe = laboratory.on_test(cell, mixture)
    for method in methods:
        outcome = laboratory.measure(probe, method)
        record = {
            "task": cell.task,
            "rows": rows_name(cell.rows),
            "seed": cell.seed,
            "method": method,
            "metric": outcome.metric,
            "value": outcome.value,
            "seconds": round(seconds + outcome.seconds, 3),
            "learning_rate": choice.learning_rate,
            "steps": choice.steps,
        }
        store.append("run", record | ({"draws": list(outcome.draws)} if outcome.draws else {}))


def _report(watch: Watch, name: str, number: int, total: int) -> tuning.OnStep:
    watch(name, number, total, None)
    return lambda progress: watch(name, number, total, progress)
