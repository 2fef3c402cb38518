"""Choose learning rate and steps of each training on validation rows, with the same number of trials for every one."""

from collections import defaultdict
from collections.abc import Callable
from statistics import fmean

from adamix import trainer
from adamix.errors import InvalidData
from adamix_bench.quality.cells import Cell, Laboratory
from adamix_bench.quality.settings import QualitySettings
from adamix_bench.quality.store import Record, RunStore
from adamix_bench.quality.trainings import TRAININGS, Choice

OnStep = Callable[[trainer.Progress], None]


def cells(settings: QualitySettings, training: str) -> list[Cell]:
    """What one training is tuned on, itself or in the shape of another."""
    tried = TRAININGS[training].tuned_as or training
    return [Cell(task, rows, settings.tuning_seed, tried) for task, rows in settings.tuning_cells]


def run_trial(laboratory: Laboratory, store: RunStore, cell: Cell, choice: Choice, on_step: OnStep) -> None:
    """Train a cell with one choice and record what it scores on validation rows."""
    mixture, seconds = laboratory.train(cell, choice, on_step)
    outcome = laboratory.measure(laboratory.on_validation(cell, mixture), "merged")
    store.append(
        "trial",
        {
            "task": cell.task,
            "rows": cell.rows,
            "seed": cell.seed,
            "training": cell.training,
            "learning_rate": choice.learning_rate,
            "steps": choice.steps,
            "metric": outcome.metric,
            "value": outcome.value,
            "seconds": round(seconds + outcome.seconds, 3),
        },
    )


def trial_key(record: Record) -> tuple[object, ...]:
    """What makes two trials the same one."""
    return tuple(record[name] for name in ("task", "rows", "seed", "training", "learning_rate", "steps"))


def missing(settings: QualitySettings, training: str, trials: list[Record]) -> list[tuple[Cell, Choice]]:
    """The trials of a training that no record has yet."""
    done = {trial_key(record) for record in trials}
    return [
        (cell, choice)
        for cell in cells(settings, training)
        for choice in settings.choices(training)
        if (cell.task, cell.rows, cell.seed, cell.training, choice.learning_rate, choice.steps) not in done
    ]


def chosen(settings: QualitySettings, training: str, trials: list[Record]) -> Choice:
    """The choice with the best mean over the tuning cells, of equals the cheapest; see also `Training`.

    Raises:
        InvalidData: trials of the training are missing.
    """
    if missing(settings, training, trials):
        raise InvalidData(f"the tuning of {training} is not complete")
    wanted = {(cell.task, cell.rows, cell.seed, cell.training) for cell in cells(settings, training)}
    grid = settings.choices(training)
    if TRAININGS[training].longest:
        grid = [choice for choice in grid if choice.steps == max(of_grid.steps for of_grid in grid)]
    values: dict[Choice, list[float]] = defaultdict(list)
    for record in trials:
        choice = Choice(record["learning_rate"], record["steps"])
        cell = (record["task"], record["rows"], record["seed"], record["training"])
        if choice in grid and cell in wanted:
            values[choice].append(record["value"])
    return max(values, key=lambda choice: (fmean(values[choice]), -choice.steps))
