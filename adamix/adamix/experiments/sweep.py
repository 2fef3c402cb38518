"""Many trainings from one TOML file: what the file says, what has been done, and the loop over the rest.

::

    OUT/sweep.json     one entry per task, rewritten after every change
    OUT/TASK/          the run of one task, as `training/run_directory.py` describes it

Knows files and order. How one task is trained is the caller's function.
"""

import difflib
import fcntl
import hashlib
import json
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from adamix.data.sources import local_files
from adamix.errors import AdamixError, Cancelled, FailedPrecondition, InvalidConfig, InvalidData
from adamix.evaluation.metrics import finite_json
from adamix.experiments.settings import SETTINGS, Kind, Value, flag_of
from adamix.files import disk

LEDGER_FILE = "sweep.json"
MAX_TASKS = 20_000
# How a finished training is judged; and what its weights do not depend on. These may change while a task is under way.
JUDGING: dict[str, Kind] = {"gate": "texts", "split": "text"}
_FREE = {*JUDGING, "device", "validate"}
_LOCK_FILE = ".sweep.lock"
_MAX_FILE_BYTES = 16 << 20
# Also the ids of tasks on a server; as directory names they stay where they are put.
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")

State = Literal["finished", "rejected", "failed", "interrupted"]
Setting = Value | list[str]


@dataclass(frozen=True)
class SweepTask:
    """One training: the settings of its table over those of `[defaults]`, by name."""

    name: str
    settings: dict[str, Setting]


@dataclass(frozen=True)
class Entry:
    """What became of one task.

    Attributes:
        state: `finished`; `rejected`: trained, but a gate does not hold; `failed`; or `interrupted`.
        settings, source: what a finished task must still have in order to be skipped; see `source_digest`.
        result: what the training made, in the caller's words.
        error: one sentence, where the task is not finished.
    """

    task: str
    state: State
    settings: dict[str, Setting]
    source: str | None = None
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    skipped: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """What a training came to: what it made, in the caller's words, and why that is not enough."""

    state: Literal["finished", "rejected", "failed"]
    result: dict[str, Any]
    error: str | None = None


def read_sweep(path: Path) -> list[SweepTask]:
    """Read a sweep: a table `[defaults]` and any number of tables `[[task]]`, each with a `name` of its own.

    Tables have the settings of a training, by the names of its flags, and those of `JUDGING`. `texts` is a string or a
    list of strings, always kept as a list; `text` takes a list as well, and joins it by commas.

    Raises:
        InvalidConfig: the file is no such thing; the message names the table and the key.
    """
    content = _read_toml(path)
    kinds: dict[str, Kind] = {flag_of(name): setting.kind for name, setting in SETTINGS.items()} | JUDGING
    unknown = sorted(content.keys() - {"defaults", "task"})
    if unknown:
        raise InvalidConfig(f"{path}: unknown table or key {unknown[0]!r}; there are [defaults] and [[task]]")
    defaults, tables = content.get("defaults", {}), content.get("task", [])
    if not isinstance(defaults, dict):
        raise InvalidConfig(f"{path}: defaults must be a table, [defaults]")
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise InvalidConfig(f"{path}: there is no [[task]] table")
    if len(tables) > MAX_TASKS:
        raise InvalidConfig(f"{path}: {len(tables)} tasks are over the limit of {MAX_TASKS}")
    shared = _settings(defaults, f"{path}: [defaults]", kinds)
    tasks: dict[str, SweepTask] = {}
    for number, table in enumerate(tables, start=1):
        where = f"{path}: [[task]] {number}"
        name = table.pop("name", None)
        if name == LEDGER_FILE:
            raise InvalidConfig(f"{where}: {LEDGER_FILE} is the name of the sweep's own file")
        if not isinstance(name, str) or _NAME.fullmatch(name) is None or ".." in name:
            raise InvalidConfig(f"{where} needs a name: 1 to 63 of a-z 0-9 . _ - with a letter or digit at both ends")
        if name in tasks:
            raise InvalidConfig(f"{where}: there is another task {name!r}")
        tasks[name] = SweepTask(name, {**shared, **_settings(table, f"{where} ({name})", kinds)})
    return list(tasks.values())


def source_digest(data: str) -> str | None:
    """sha256 over names and contents of the files that a `data` setting reads; None where it reads none."""
    total = hashlib.sha256()
    try:
        files = local_files(data)
        for name, file in files.items():
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            total.update(f"{name}\0{digest}\n".encode())
    except (OSError, ValueError):
        return None
    return total.hexdigest() if files else None


class Ledger:
    """`sweep.json`: the entry of every task that was begun, on disk after every change.

    Raises:
        FailedPrecondition: the file is damaged.
    """

    def __init__(self, out: Path) -> None:
        self._path = out / LEDGER_FILE
        self._entries: dict[str, Entry] = {}
        if self._path.exists():
            try:
                content = msgspec.json.decode(self._path.read_bytes(), type=dict[str, list[Entry]])
                self._entries = {entry.task: entry for entry in content["tasks"]}
            except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, RecursionError):
                raise FailedPrecondition(
                    f"{self._path} is damaged: move it away, and finished tasks are measured again"
                ) from None

    def entry(self, task: str) -> Entry | None:
        return self._entries.get(task)

    def put(self, entry: Entry) -> None:
        self._entries[entry.task] = entry
        text = json.dumps(finite_json({"tasks": [e.to_json() for e in self._entries.values()]}), indent=2)
        disk.write(self._path, text.encode())

    def is_done(self, task: SweepTask) -> bool:
        """Whether this task is finished, with these settings and these data, and what it made is there."""
        entry = self.entry(task.name)
        return (
            entry is not None
            and entry.state == "finished"
            and (self._path.parent / task.name).is_dir()
            and entry.settings == task.settings
            and entry.source == source_digest(str(task.settings.get("data", "")))
        )


def run(
    tasks: Sequence[SweepTask],
    out: Path,
    train: Callable[[SweepTask, Path], Outcome],
    *,
    is_done: Callable[[Entry], bool] = lambda _: True,
    on_task: Callable[[int, SweepTask], None] = lambda *_: None,
) -> Iterator[Entry]:
    """Train the tasks in order, each in its directory below `out`, and yield an entry for each.

    A finished task is skipped, an interrupted one goes on from its checkpoint, and one that fails does not keep the
    others from being trained. The first Ctrl-C ends the sweep.

    Args:
        train: trains one task in a directory, new or begun. An error it raises fails the task; Cancelled and
            KeyboardInterrupt end the sweep.
        is_done: a further condition on which a finished task is skipped.
        on_task: called with the place in the order, from 1, before a task is trained.

    Raises:
        Cancelled: stopped by Ctrl-C; the same call goes on.
        FailedPrecondition: another sweep runs in `out`, or its ledger is damaged.
    """
    with _lock(out):
        ledger = Ledger(out)
        for number, task in enumerate(tasks, start=1):
            before = ledger.entry(task.name)
            if before is not None and ledger.is_done(task) and is_done(before):
                yield replace(before, skipped=True)
                continue
            entry = Entry(task.name, "interrupted", task.settings, source_digest(str(task.settings.get("data", ""))))
            if change := _change(before, task, out):
                # The ledger keeps the settings that the run was begun with.
                yield replace(entry, state="failed", error=change)
                continue
            on_task(number, task)
            started = time.monotonic()
            try:
                ledger.put(entry)
                outcome = train(task, out / task.name)
                entry = replace(entry, state=outcome.state, result=outcome.result, error=outcome.error)
            except (Cancelled, KeyboardInterrupt) as stop:
                reason = str(stop).partition(";")[0] or "stopped"
                ledger.put(replace(entry, error=reason, seconds=_since(started)))
                raise Cancelled(f"{task.name}: {reason}; the same command goes on from there") from None
            except AdamixError as error:
                entry = replace(entry, state="failed", error=_reason(error, out / task.name))
            except OSError as error:
                entry = replace(entry, state="failed", error=f"{error.filename or 'the disk'}: {error.strerror}")
            entry = replace(entry, seconds=_since(started))
            ledger.put(entry)
            yield entry


def _change(before: Entry | None, task: SweepTask, out: Path) -> str:
    """Why a run that was begun cannot go on: a run has one set of settings. Said in the file's words."""
    if before is None or not (out / task.name).exists():
        return ""
    for key in sorted((before.settings.keys() | task.settings.keys()) - _FREE):
        was, now = before.settings.get(key), task.settings.get(key)
        if was != now:
            return (
                f"{key} was {_shown(was)} when {out / task.name} was begun, and is {_shown(now)} now: remove that "
                "directory to train the task anew"
            )
    return ""


def _reason(error: AdamixError, directory: Path) -> str:
    """Why a training failed. Of rows that have changed a training has less to say than is of use here."""
    if error.field == "data.sha256":
        return (
            f"the rows to train on have changed since {directory} was begun: remove that directory to train the task "
            "anew"
        )
    return error.message


def _settings(table: Mapping[str, Any], where: str, kinds: Mapping[str, Kind]) -> dict[str, Setting]:
    settings: dict[str, Setting] = {}
    for key, value in table.items():
        if key not in kinds:
            close = difflib.get_close_matches(key.replace("_", "-"), kinds, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InvalidConfig(f"{where}: unknown key {key[:60]!r}{hint}", field=key)
        settings[key] = _value(value, f"{where}: {key}", kinds[key])
    return settings


def _value(value: Any, where: str, kind: Kind) -> Setting:
    is_texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    match kind:
        case "switch" if isinstance(value, bool):
            return value
        case "integer" if isinstance(value, int) and not isinstance(value, bool):
            return value
        case "number" if isinstance(value, int | float) and not isinstance(value, bool):
            return value
        case "text" if isinstance(value, str) or is_texts:
            return value if isinstance(value, str) else ",".join(value)
        case "texts" if isinstance(value, str) or is_texts:
            return [value] if isinstance(value, str) else list(value)
    wanted = {"switch": "true or false", "integer": "an integer", "number": "a number"}.get(kind, "a string")
    raise InvalidConfig(f"{where} must be {wanted}, not {str(value)[:60]!r}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidData(f"{path}: {error.strerror}") from None
    if len(data) > _MAX_FILE_BYTES:
        raise InvalidData(f"{path} is over {_MAX_FILE_BYTES >> 20} MiB")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidConfig(f"{path} is not TOML: {str(error)[:200]}") from None


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    if out.exists() and not out.is_dir():
        raise InvalidConfig(f"{out} is a file; --out names a directory")
    out.mkdir(parents=True, exist_ok=True)
    with (out / _LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FailedPrecondition(f"another sweep is running in {out}") from None
        yield


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _shown(value: Setting | None) -> str:
    return "not set" if value is None else repr(value)
