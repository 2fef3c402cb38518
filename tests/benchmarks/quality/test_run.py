"""The order of work, what is left out because it is done, and what the tuning chooses."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adamix.errors import InvalidConfig, InvalidData
from adamix_bench.quality import run as running
from adamix_bench.quality import tuning
from adamix_bench.quality.cells import Cell, Outcome
from adamix_bench.quality.settings import QualitySettings
from adamix_bench.quality.store import RunStore
from adamix_bench.quality.trainings import METHODS, TRAININGS, Choice

SETTINGS = QualitySettings(
    tasks=("trec", "spam"),
    rows=(100, None),
    seeds=(0, 1),
    methods=("merged", "random", "single-compute"),
    learning_rates=(0.1, 0.2),
    steps=(5, 10),
    tuning_cells=(("trec", 100), ("spam", 100)),
)


class Bench:
    """A laboratory whose results are known: a choice scores its learning rate, a method the length of its name."""

    def __init__(self, *_: Any) -> None:
        self.trained: list[tuple[Cell, Choice]] = []
        self.fail_after = 10**9
        self.begun = False
        self.gain = 0.0

    def begin(self) -> None:
        self.begun = not self.trained

    def train(self, cell: Cell, choice: Choice, on_step: Any) -> tuple[Any, float]:
        if len(self.trained) >= self.fail_after:
            raise KeyboardInterrupt
        self.trained.append((cell, choice))
        return choice, 1.0

    def on_validation(self, cell: Cell, mixture: Choice) -> Choice:
        return mixture

    def on_test(self, cell: Cell, mixture: Choice) -> None:
        return None

    def measure(self, probe: Choice | None, method: str) -> Outcome:
        if probe is not None:
            return Outcome("accuracy", probe.learning_rate + self.gain * probe.steps, 0.5)
        return Outcome("accuracy", len(method) / 100, 0.5, (0.1, 0.2) if method == "random" else ())


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()
    monkeypatch.setattr(running, "Laboratory", lambda *_: made)
    return made


def _run(store: RunStore) -> bool:
    return running.run(SETTINGS, store, Path("unused"), lambda *_: None)


def test_every_cell_gets_a_record_with_the_tuned_choice(bench: Bench, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "quality.jsonl", tmp_path / "claims")
    assert _run(store)
    records = store.records("run")
    found = [(r["task"], r["rows"], r["seed"], r["method"]) for r in records]
    assert len(found) == len(set(found)) == 2 * 2 * 2 * 3
    assert {r["rows"] for r in records} == {100, "all"}
    # Of two step counts that score the same, the cheaper one; one pass a step takes twice the steps.
    assert {(r["learning_rate"], r["steps"]) for r in records if r["method"] == "merged"} == {(0.2, 5)}
    assert {(r["learning_rate"], r["steps"]) for r in records if r["method"] == "single-compute"} == {(0.2, 10)}
    assert all(r["draws"] == [0.1, 0.2] for r in records if r["method"] == "random")
    assert not any("draws" in r for r in records if r["method"] != "random")


def test_all_methods_of_a_mixture_cost_one_training(bench: Bench, tmp_path: Path) -> None:
    _run(RunStore(tmp_path / "quality.jsonl", tmp_path / "claims"))
    trials = 2 * (2 * 2) * 2
    assert len(bench.trained) == trials + 2 * 2 * 2 * 2
    assert bench.begun, "before the first training the working directory was asked whose it is"


def test_a_run_that_was_stopped_goes_on_where_it_was(bench: Bench, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "quality.jsonl", tmp_path / "claims")
    bench.fail_after = 20
    with pytest.raises(KeyboardInterrupt):
        _run(store)
    assert 0 < len(store.records("run")) < 24
    bench.fail_after = 10**9
    assert _run(store)
    assert len(store.records("run")) == 24
    assert len(bench.trained) == len(set(bench.trained)), "nothing was trained twice"
    before = len(bench.trained)
    assert _run(store)
    assert len(bench.trained) == before


def test_what_another_process_works_on_is_left_to_it(bench: Bench, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "quality.jsonl", tmp_path / "claims")
    with store.claimed(Cell("trec", 100, 0, "adamix").key):
        assert not _run(store)
    assert len(store.records("run")) == 24 - 2
    assert _run(store)
    assert len(store.records("run")) == 24


def test_a_trial_that_another_process_works_on_is_waited_for(bench: Bench, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "quality.jsonl", tmp_path / "claims")
    trial = f"{tuning.cells(SETTINGS, 'adamix')[0].key}-0.1-5"
    others_done = threading.Event()

    def work_elsewhere() -> None:
        others_done.wait(30)
        claim.__exit__(None, None, None)

    claim = store.claimed(trial)
    assert claim.__enter__()
    other = threading.Thread(target=work_elsewhere)
    other.start()
    threading.Timer(0.2, others_done.set).start()
    assert _run(store), "no cell is left out because the tuning was not complete when this process came to it"
    other.join()
    assert len(store.records("run")) == 24


def test_no_choice_while_trials_are_missing(bench: Bench, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "quality.jsonl", tmp_path / "claims")
    _run(store)
    trials = store.records("trial")
    assert tuning.chosen(SETTINGS, "adamix", trials) == Choice(0.2, 5)
    with pytest.raises(InvalidData, match="tuning of adamix is not complete"):
        tuning.chosen(SETTINGS, "adamix", trials[1:])
    assert {record["seed"] for record in trials} == {SETTINGS.tuning_seed}


def _trial(training: str, learning_rate: float, steps: int, value: float) -> list[dict[str, Any]]:
    """What a training scored with one choice, the same on every tuning cell."""
    return [
        {"task": cell.task, "rows": cell.rows, "seed": cell.seed, "training": cell.training}
        | {"learning_rate": learning_rate, "steps": steps, "value": value}
        for cell in tuning.cells(SETTINGS, training)
    ]


def test_steps_are_chosen_for_both_sides_of_the_claim_together() -> None:
    """Alone, AdaMix would take 5 steps: half the compute of what the single adapter takes, and no longer equal."""
    trials = [
        *_trial("adamix", 0.1, 5, 0.70), *_trial("adamix", 0.2, 5, 0.60),
        *_trial("adamix", 0.1, 10, 0.50), *_trial("adamix", 0.2, 10, 0.69),
        *_trial("single-compute", 0.1, 10, 0.60), *_trial("single-compute", 0.2, 10, 0.61),
        *_trial("single-compute", 0.1, 20, 0.63), *_trial("single-compute", 0.2, 20, 0.40),
    ]  # fmt: skip
    assert tuning.common_steps(SETTINGS, trials) == 10
    assert tuning.chosen(SETTINGS, "adamix", trials) == Choice(0.2, 10)
    assert tuning.chosen(SETTINGS, "single-compute", trials) == Choice(0.1, 20)
    assert tuning.chosen(SETTINGS, "shortest", trials) == Choice(0.1, 5)
    assert tuning.chosen(SETTINGS, "rank-4", trials) == Choice(0.2, 10)
    with pytest.raises(InvalidData, match="not complete"):
        tuning.common_steps(SETTINGS, trials[1:])


def test_others_are_tuned_at_those_steps_alone() -> None:
    trials = [
        record
        for training in ("adamix", "single-compute")
        for choice in SETTINGS.choices(training)
        for record in _trial(training, choice.learning_rate, choice.steps, choice.steps / 100)
    ]
    for training, steps in (("single", 10), ("m8", 10), ("lora", 20), ("no-consistency", 20)):
        asked = tuning.missing(SETTINGS, training, trials)
        assert {(choice.learning_rate, choice.steps) for _, choice in asked} == {(0.1, steps), (0.2, steps)}
        assert {cell.training for cell, _ in asked} == {training}
    with pytest.raises(InvalidData, match="tuning of m8 is not complete"):
        tuning.chosen(SETTINGS, "m8", trials)


def test_one_number_of_steps_asks_for_no_trials_of_the_claim(bench: Bench, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "quality.jsonl", tmp_path / "claims")
    running.run(replace(SETTINGS, methods=("head",), steps=(5,)), store, Path("unused"), lambda *_: None)
    assert {record["training"] for record in store.records("trial")} == {"head"}
    assert {record["steps"] for record in store.records("run")} == {10}


def test_runs_of_another_choice_are_not_mixed_with_ours(bench: Bench, tmp_path: Path) -> None:
    store = RunStore(tmp_path / "quality.jsonl", tmp_path / "claims")
    _run(store)
    path = store.path
    path.write_text(path.read_text().replace('"learning_rate": 0.2, "steps": 5}', '"learning_rate": 0.1, "steps": 5}'))
    with pytest.raises(InvalidConfig, match=r"has a run of merged with a learning rate of 0\.1 and 5 steps, but"):
        _run(store)


def test_every_training_has_as_many_choices_and_the_same_compute() -> None:
    settings = QualitySettings()
    for name, training in TRAININGS.items():
        if training.tuned_as is not None:
            assert training.steps_factor == TRAININGS[training.tuned_as].steps_factor
        choices = settings.choices(name)
        assert len(choices) == len(settings.choices("adamix"))
        passes = {choice.steps * training.mixture.passes for choice in choices}
        halved = {steps * 2 // (2 if name == "single" else 1) for steps in settings.steps}
        assert passes == halved, "only `single` trains with half the compute: it is the one at equal steps"
    assert set(METHODS.values()) == set(TRAININGS)


def test_some_trainings_take_what_was_chosen_for_another(bench: Bench, tmp_path: Path) -> None:
    """They differ from it in one thing, and cost no trial; the shortest training differs in its steps."""
    store = RunStore(tmp_path / "quality.jsonl", tmp_path / "claims")
    bench.gain = 0.001  # of each step, so that the longer training is chosen
    settings = replace(SETTINGS, methods=("merged", "rank-4", "shortest"))
    running.run(settings, store, Path("unused"), lambda *_: None)
    assert {record["training"] for record in store.records("trial")} == {"adamix", "single-compute"}
    steps = {(record["method"], record["learning_rate"], record["steps"]) for record in store.records("run")}
    assert steps == {("merged", 0.2, 10), ("rank-4", 0.2, 10), ("shortest", 0.2, 5)}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"tasks": ("trec", "nowhere")}, "nowhere"),
        ({"methods": ("best",)}, "best"),
        ({"tasks": ()}, "at least one"),
        ({"tasks": ("trec", "trec")}, "twice"),
        ({"seeds": (1_000,)}, "tuning"),
        ({"rows": (0,)}, "positive"),
        ({"draws": 0}, "positive"),
        ({"validation_rows": 0}, "positive"),
        ({"tuning_cells": (("trec", 0),)}, "positive"),
        ({"precision": "fp8"}, "precision"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_length": 2}, "max_length"),
        ({"steps": (0,)}, "max_steps"),
        ({"learning_rates": (1e-3, 99.0)}, "learning_rate"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidConfig, match=match):
        QualitySettings(**changes)
