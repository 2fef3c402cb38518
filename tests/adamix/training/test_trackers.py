"""`--report-to`: curves go to a tracker of transformers, and a missing package costs nothing but a sentence."""

import importlib.machinery
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils
from typer.testing import CliRunner

import adamix
from adamix.cli import app
from adamix.errors import InvalidConfig
from adamix.experiments import trackers
from adamix.experiments.plan import Plan
from adamix.experiments.trackers import TRACKERS, read_trackers

FLAGS: dict[str, Any] = {"max_steps": 20, "batch_size": 8, "max_length": 32, "rank": 4, "progress": False}


class Recorder(TrainerCallback):
    """An integration that keeps what it is told."""

    told: list[dict[str, float]]
    names: list[str | None]

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.names.append(args.run_name)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.told.append({"step": state.global_step, **(logs or {})})


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    """Trackio, played: installed, and the integration that transformers has for it."""
    Recorder.told, Recorder.names = [], []
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Recorder)
    monkeypatch.setattr(trackers, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    return Recorder


def test_the_known_ones_are_transformers_own() -> None:
    assert (
        set(TRACKERS) == {"tensorboard", "wandb", "mlflow", "trackio"} <= set(integration_utils.INTEGRATION_TO_CALLBACK)
    )


def test_curves_go_to_the_tracker_and_the_weights_stay_the_same(
    recorder: type[Recorder], backbone_directory: Path, csv: Path, tmp_path: Path
) -> None:
    told = adamix.fit(backbone_directory, csv, out=tmp_path / "told", report_to="trackio", **FLAGS)
    losses = [entry for entry in recorder.told if "loss" in entry]
    assert [entry["step"] for entry in losses] == [10, 20]
    assert all("learning_rate" in entry for entry in losses)
    assert recorder.names == ["told"]
    silent = adamix.fit(backbone_directory, csv, out=tmp_path / "silent", **FLAGS)
    assert len([entry for entry in recorder.told if "loss" in entry]) == 2, "none by default"
    one, other = (fitted.out / "mixture.safetensors" for fitted in (told, silent))
    assert one.read_bytes() == other.read_bytes()
    assert (told.out / "run.json").read_text() == (silent.out / "run.json").read_text(), "either may be resumed so"


def test_nothing_is_sent_unasked_where_the_environment_names_a_server(
    recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch, backbone_directory: Path, csv: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "https://127.0.0.1:1")
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "kubeflow", Recorder)
    adamix.fit(backbone_directory, csv, out=tmp_path / "run", **FLAGS | {"max_steps": 10})
    assert recorder.told == []


def test_a_missing_package_is_told_with_what_to_type_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, csv: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    arguments = ["train", "--backbone", "no-such", "--data", csv, "--out", tmp_path / "run", "--report-to", "wandb"]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2
    assert "--report-to wandb needs the package wandb: pip install wandb" in result.stderr
    with pytest.raises(InvalidConfig, match="report_to mlflow needs the package mlflow: pip install mlflow") as caught:
        adamix.fit("no-such", csv, out=tmp_path / "run", report_to=["mlflow"])
    assert (caught.value.reason, caught.value.field) == ("PACKAGE_MISSING", "report_to")
    assert not (tmp_path / "run").exists()


def test_one_package_of_several_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: True if name == "tensorboardX" else None)
    plan = Plan.of({"backbone": "b", "data": "d", "report_to": "tensorboard"})
    assert plan.report_to == ("tensorboard",)


def test_names_are_read_as_they_are_written() -> None:
    assert read_trackers("none") == ()
    assert read_trackers("wandb, tensorboard,wandb") == ("wandb", "tensorboard")
    for text in ("", "all", "wandb,none", "wandb,"):
        with pytest.raises(InvalidConfig, match="--report-to must be none or some of tensorboard"):
            read_trackers(text)
