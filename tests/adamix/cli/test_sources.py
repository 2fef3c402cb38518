"""An option's value: a flag goes before the environment, that before a file, that before the default."""

from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from adamix.cli import sources
from adamix.cli.lazy import Command, family, lazy_app
from adamix_server.cli.main import app as adamix

SEEN: list[dict[str, Any]] = []
SETTINGS: list[sources.Setting] = []


def work(
    ctx: typer.Context,
    rank: Annotated[int, typer.Option(min=1)] = 16,
    share: str = "up",
    out: Path | None = None,
    validate: bool = True,
    class_: Annotated[str, typer.Option("--class")] = "interactive",
    gate: Annotated[list[str] | None, typer.Option()] = None,
    store_url: str = "",
    server: Annotated[str, typer.Option(envvar="ADAMIX_SERVER")] = "here",
) -> None:
    """Work."""
    SEEN.append(ctx.params)
    SETTINGS[:] = sources.settings(ctx)


keys = family("Keys.")
keys.command("create")(work)


def _none() -> None:
    """All."""


app = lazy_app([Command("work", f"{__name__}:work", "Work."), Command("keys", f"{__name__}:keys", "Keys.")], _none)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    # The module is loaded by its path, and looked up by its name.
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this())
    SEEN.clear()


def _this() -> Any:
    import types

    module = types.ModuleType(__name__)
    vars(module).update(work=work, keys=keys)
    return module


def ask(*arguments: object, env: dict[str, str] | None = None) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments], env=env)


def file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "adamix.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_flag_before_the_environment_before_a_file_before_the_default(tmp_path: Path) -> None:
    config = file(tmp_path, "[work]\nrank = 2\nshare = 'down'\n")
    env = {"ADAMIX_WORK_RANK": "3"}
    for flags, environment, rank in [(["--rank", 4], env, 4), ([], env, 3), ([], {}, 2)]:
        assert ask("work", "--config", config, *flags, env=environment).exit_code == 0
        assert (SEEN[-1]["rank"], SEEN[-1]["share"]) == (rank, "down")
    assert ask("work").exit_code == 0
    assert (SEEN[-1]["rank"], SEEN[-1]["share"]) == (16, "up")


def test_every_kind_of_value(tmp_path: Path) -> None:
    text = "out = 'x y/z'\nvalidate = false\nclass = 'batch'\ngate = ['a>=1', 'b c']\nrank = 7"
    for table, words in (("work", ["work"]), ("keys.create", ["keys", "create"])):
        assert ask(*words, "--config", file(tmp_path, f"[{table}]\n{text}\n")).exit_code == 0
        expected = {"out": Path("x y/z"), "validate": False, "class_": "batch", "gate": ["a>=1", "b c"], "rank": 7}
        assert SEEN[-1] | expected == SEEN[-1]


def test_the_environment_names_command_and_option() -> None:
    env = {"ADAMIX_KEYS_CREATE_CLASS": "batch", "ADAMIX_KEYS_CREATE_VALIDATE": "false", "ADAMIX_WORK_CLASS": "no"}
    assert ask("keys", "create", env=env).exit_code == 0
    assert (SEEN[-1]["class_"], SEEN[-1]["validate"]) == ("batch", False)


def test_the_command_s_own_variable_goes_before_the_one_of_all() -> None:
    assert ask("work", env={"ADAMIX_SERVER": "all", "ADAMIX_WORK_SERVER": "own"}).exit_code == 0
    assert SEEN[-1]["server"] == "own"
    assert ask("work", env={"ADAMIX_SERVER": "all"}).exit_code == 0
    assert SEEN[-1]["server"] == "all"


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    config = file(tmp_path, "[work]\nrank = 2\n")
    assert ask("work", env={"ADAMIX_WORK_CONFIG": str(config)}).exit_code == 0
    assert SEEN[-1]["rank"] == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"[work", "not TOML"),
        (b"[work]\nrank = 1\nrank = 2", "not TOML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"#" * (sources.MAX_CONFIG_BYTES + 1), "over 1 MiB"),
        (b"[wrok]\nrank = 1", "[wrok] is no command; did you mean work?"),
        (b"[work]\nrnak = 1", "rnak is no option of `adamix work`; did you mean rank?"),
        (b"[work]\nconfig = 'x'", "config is given as a flag"),
        (b"work = 3", "work is not a table"),
        (b"[work]\nrank = [1]", "takes one value"),
        (b"[work]\nrank = 1979-05-27", "must be a text or a number"),
        (b"[work]\nrank = true", "must be a text or a number"),
        (b"[work]\nvalidate = 'yes'", "must be true or false"),
        (b"[work]\ngate = [['a']]", "in each place"),
        (b"[work]\nrank = 1.5", "adamix.toml)"),
        (b"[work]\nrank = 0", "adamix.toml)"),
        (b'[work]\n"\\u001b[2J" = 0', "\\x1b[2J is no option"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(text: bytes, said: str, tmp_path: Path) -> None:
    result = ask("work", "--config", file(tmp_path, text))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert said in result.stderr
    assert "\x1b" not in result.stderr


def test_a_file_that_is_not_there_or_no_file(tmp_path: Path) -> None:
    assert "no such file" in ask("work", "--config", tmp_path / "none.toml").stderr
    assert "no such file" in ask("work", "--config", tmp_path).stderr
    assert ask("work", "--config", "x\0y").exit_code == 2


def test_a_mistake_in_the_environment_names_the_variable() -> None:
    result = ask("work", env={"ADAMIX_WORK_RANK": "two"})
    assert result.exit_code == 2
    assert "ADAMIX_WORK_RANK" in result.stderr


def test_a_command_can_say_where_each_value_is_from(tmp_path: Path) -> None:
    config = file(tmp_path, "[work]\nshare = 'none'\nstore-url = 'postgresql+psycopg://u:pa55@db/x'\n")
    assert ask("work", "--config", config, "--out", "o", env={"ADAMIX_WORK_RANK": "3"}).exit_code == 0
    found = {setting.name: (setting.value, setting.source, setting.place) for setting in SETTINGS}
    assert found["out"] == ("o", "flag", "")
    assert found["rank"] == (3, "environment", "ADAMIX_WORK_RANK")
    assert found["share"] == ("none", "file", str(config))
    assert found["class"] == ("interactive", "default", "")
    assert found["store-url"][0] == "postgresql+psycopg://***@db/x"
    assert "config" not in found


@given(st.text(min_size=1), st.text(min_size=1))
def test_no_password_of_an_address_is_shown(user: str, password: str) -> None:
    secret = "".join(c for c in password if c.isalnum()) + "Zz"
    shown = sources.masked("store-url", f"s3://{''.join(c for c in user if c.isalnum())}:{secret}@host/a")
    assert secret not in shown
    assert sources.masked("api-key", secret) == "***"


def test_few_shot_takes_the_settings_of_train_from_its_own_table(tmp_path: Path) -> None:
    """And what the file says counts as given: it goes before a recipe, and is checked as a flag is."""
    own = ["--backbone", "x", "--data", "y", "--out", str(tmp_path / "z")]
    run = CliRunner()
    for text, said in (("lr = 20", "lr must be in"), ("seed = 1", "seed is not for few-shot"), ("rnak = 1", "rank?")):
        config = file(tmp_path, f"[few-shot]\n{text}\n")
        result = run.invoke(adamix, ["few-shot", *own, "--config", str(config)])
        assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    result = run.invoke(adamix, ["few-shot", *own], env={"ADAMIX_FEW_SHOT_LR": "20", "ADAMIX_TRAIN_LR": "1"})
    assert "lr must be in" in result.stderr
    result = run.invoke(adamix, ["train", *own, "--config", str(file(tmp_path, "[train]\nlr = 20\n"))])
    assert "lr must be in" in result.stderr
