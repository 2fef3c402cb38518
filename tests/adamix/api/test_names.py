"""One table of names: functions, flags and settings agree, and importing the package costs nothing."""

import inspect
import subprocess
import sys
from typing import Any, get_type_hints

import pytest

import adamix
from adamix.api.given import as_settings
from adamix.api.words import in_words_of_python
from adamix.cli.evaluate import evaluate as evaluate_command
from adamix.cli.merge import merge as merge_command
from adamix.cli.report import report as report_command
from adamix.cli.train import train as train_command
from adamix.errors import InvalidConfig
from adamix.experiments.settings import SETTINGS

EMPTY = inspect.Parameter.empty
# Of a program alone, and of a command alone.
PROGRAM = {"progress", "callbacks"}
COMMAND = {"ctx", "json_", "push", "task", "gate", "push_split", "save_predictions", "plot"}


def _defaults(function: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


@pytest.mark.parametrize(
    ("function", "command"),
    [
        (adamix.fit, train_command),
        (adamix.merge, merge_command),
        (adamix.evaluate, evaluate_command),
        (adamix.report, report_command),
    ],
    ids=["fit", "merge", "evaluate", "report"],
)
def test_a_function_has_the_names_and_defaults_of_the_flags(function: Any, command: Any) -> None:
    ours, flags = _defaults(function), _defaults(command)
    ours = {name: value for name, value in ours.items() if name not in PROGRAM}
    flags = {name: value for name, value in flags.items() if name not in COMMAND}
    assert set(ours) == set(flags)
    # What a command needs is needed here too; `data` has no default where it is none of a command's either.
    assert {name: ours[name] for name in flags} == flags


def test_the_arguments_of_fit_are_the_table_of_settings() -> None:
    names = list(_defaults(adamix.fit))
    assert [name for name in names if name in SETTINGS] == list(SETTINGS)
    assert [name for name in names if name not in SETTINGS] == ["out", "resume", *sorted(PROGRAM, reverse=True)]


def test_all_but_what_a_function_is_about_is_given_by_name() -> None:
    allowed = {"fit": 2, "merge": 1, "evaluate": 2, "load": 1, "inspect": 1, "report": 1}
    for name, count in allowed.items():
        parameters = list(inspect.signature(getattr(adamix, name)).parameters.values())
        kinds = [parameter.kind for parameter in parameters]
        assert kinds == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * count + [inspect.Parameter.KEYWORD_ONLY] * (
            len(kinds) - count
        ), name


def test_every_argument_of_fit_is_explained_and_typed() -> None:
    text = inspect.getdoc(adamix.fit) or ""
    for name in _defaults(adamix.fit):
        assert f"\n    {name}: " in text, name
    hints = get_type_hints(inspect.unwrap(adamix.fit), localns={"Sequence": list, "Callback": object})
    assert set(_defaults(adamix.fit)) <= set(hints)


def test_the_package_and_its_errors_import_nothing_heavy() -> None:
    code = (
        "import sys, adamix, adamix.errors, adamix.files.manifest\n"
        "assert 'fit' in dir(adamix) and 'adamix.api' not in sys.modules\n"
        "assert not {'torch', 'transformers', 'numpy', 'grpc', 'tqdm'} & set(sys.modules)\n"
        "adamix.fit, adamix.merge, adamix.load, adamix.report, adamix.inspect, adamix.evaluate\n"
        "assert not {'torch', 'transformers', 'grpc'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_there_is_no_other_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = adamix.train


def test_values_are_written_as_settings_are() -> None:
    given = {
        "sites": ["attn_q", "attn_v"],
        "clip": (0, 5),
        "verbalizer": {"no": "bad"},
        "report_to": [],
        "lr": 1,
        "rank": 8,
        "recipe": None,
        "out": "run",
    }
    assert as_settings(given) == {
        "sites": "attn_q,attn_v",
        "clip": "0,5",
        "verbalizer": '{"no": "bad"}',
        "report_to": "none",
        "lr": 1.0,
        "rank": 8,
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rank", "8", "rank must be a whole number, not '8'"),
        ("rank", 8.5, "rank must be a whole number"),
        ("rank", True, "rank must be a whole number"),
        ("lr", "0.1", "lr must be a number"),
        ("validate", 1, "validate must be True or False"),
        ("method", 3, "method must be a text"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(name: str, value: object, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message) as caught:
        as_settings({name: value})
    assert caught.value.field == name


def test_errors_name_arguments_where_commands_name_flags() -> None:
    assert in_words_of_python("--lora-dropout is for --how dare") == "lora_dropout is for how dare"
    assert in_words_of_python("continue with --resume") == "continue with resume=True"
    assert in_words_of_python("max-length 128 is over 64") == "max_length 128 is over 64"
    assert in_words_of_python("run `adamix merge DIR --out FILE`") == "run `adamix merge DIR --out FILE`"
