"""Choose on validation rows: the steps once for all, so that compute is equal, the learning rate of each training."""

from collections import defaultdict
from collections.abc import Callable
from statistics import fmean

from adamix.errors import InvalidData
from adamix.training import train as trainer
from adamix_bench.quality.cells import Cell, Laboratory
from adamix_bench.quality.settings import QualitySettings
from adamix_bench.quality.store import Record, RunStore
from adamix_bench.quality.trainings import PAIR, TRAININGS, Choice

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


def wanted(settings: QualitySettings, training: str, trials: list[Record]) -> list[tuple[Cell, Choice]]:
    """The trials that choose for a training.

    The two trainings of the claim need the whole grid, every other one the learning rates at the steps that were chosen
    by these two.

    Raises:
        InvalidData: the two are not complete, so that the steps of others are not known.
    """
    grid = settings.choices(training)
    if (TRAININGS[training].tuned_as or training) not in PAIR:
        steps = common_steps(settings, trials) * TRAININGS[training].steps_factor
        grid = [choice for choice in grid if choice.steps == steps]
    return [(cell, choice) for cell in cells(settings, training) for choice in grid]


def missing(settings: QualitySettings, training: str, trials: list[Record]) -> list[tuple[Cell, Choice]]:
    """Those of `wanted` that no record has yet.

    Raises:
        InvalidData: as `wanted`.
    """
    done = {trial_key(record) for record in trials}
    return [
        (cell, choice)
        for cell, choice in wanted(settings, training, trials)
        if (cell.task, cell.rows, cell.seed, cell.training, choice.learning_rate, choice.steps) not in done
    ]


def chosen(settings: QualitySettings, training: str, trials: list[Record]) -> Choice:
    """The steps that all trainings have in common, and the learning rate with the best mean over the tuning cells.

    Raises:
        InvalidData: trials that this depends on are missing.
    """
    if missing(settings, training, trials):
        raise InvalidData(f"the tuning of {training} is not complete")
    steps = min(settings.steps) if TRAININGS[training].shortest else common_steps(settings, trials)
    return _best(settings, training, trials, steps)[0]


def common_steps(settings: QualitySettings, trials: list[Record]) -> int:
    """The steps of the grid at which the two trainings of the claim score best together; of equals the fewest.

    A comparison at equal compute is one only if neither side took less of it. So not each side chooses its steps, but
    both together: by the sum of what each scores with the best learning rate it has there.

    Raises:
        InvalidData: trials of theirs are missing.
    """
    if len(settings.steps) == 1:
        return settings.steps[0]
    if any(missing(settings, training, trials) for training in PAIR):
        raise InvalidData(f"the tuning of {' and '.join(PAIR)} is not complete")
    return max(sorted(settings.steps), key=lambda steps: sum(_best(settings, name, trials, steps)[1] for name in PAIR))


def _best(settings: QualitySettings, training: str, trials: list[Record], steps: int) -> tuple[Choice, float]:
    """Of the choices with these steps of two passes the one with the best mean over the tuning cells, and that mean."""
    tried_on = {(cell.task, cell.rows, cell.seed, cell.training) for cell in cells(settings, training)}
    steps *= TRAININGS[training].steps_factor
    values: dict[Choice, list[float]] = defaultdict(list)
    for record in trials:
        choice = Choice(record["learning_rate"], record["steps"])
        cell = (record["task"], record["rows"], record["seed"], record["training"])
        if cell in tried_on and choice.steps == steps and choice in settings.choices(training):
            values[choice].append(record["value"])
    best = max(values, key=lambda choice: (fmean(values[choice]), -choice.learning_rate))
    return best, fmean(values[best])
