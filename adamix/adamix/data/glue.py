"""The eight tasks of GLUE (Wang et al., ICLR 2019) that the paper reports: their files, columns and labels.

A task is read from the library `datasets`, or from the tab-separated files of the benchmark's own archive, which use
no quotes: a field is what lies between two tabs, whatever characters it has. Label ids are those of `datasets`. The
labels of the test sets are kept by the benchmark, so there are train and validation (its dev sets) only. Knows no
metrics: see `adamix.experiments.glue`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adamix.data.files import MAX_FILE_BYTES, check_file, read_lines
from adamix.data.hub import check, read_hub
from adamix.data.rows import Row, assemble
from adamix.data.task import Split, TaskData, TaskType
from adamix.errors import InvalidConfig, InvalidData
from adamix.hub import nearest

PREFIX = "glue:"
_HUB_NAME = "nyu-mll/glue"
_MRPC_FILE, _MRPC_DEV_IDS = "msr_paraphrase_train.txt", "dev_ids.tsv"


@dataclass(frozen=True)
class GlueTask:
    """One task as the benchmark publishes it.

    Attributes:
        folder: of the archive.
        config: its name in `datasets`.
        text, pair, label: the columns' names.
        labels: the names of the label ids, in order; none of a regression.
        spelled: how the files write each label id; none where they write numbers to regress on.
        dev: the file with the validation rows, without its suffix.
        columns: of files without a header.
        damaged: rows with a field missing that are passed over, since the published files have some.
    """

    folder: str
    config: str
    text: str
    pair: str | None
    label: str
    labels: tuple[str, ...]
    spelled: tuple[str, ...]
    dev: str = "dev"
    columns: tuple[str, ...] | None = None
    damaged: int = 0

    @property
    def task_type(self) -> TaskType:
        return "classification" if self.labels else "regression"


_ENTAILMENT = ("entailment", "not_entailment")
_THREE_WAY = ("entailment", "neutral", "contradiction")
_BITS = ("0", "1")

TASKS: dict[str, GlueTask] = {
    "cola": GlueTask(
        "CoLA",
        "cola",
        "sentence",
        None,
        "label",
        ("unacceptable", "acceptable"),
        _BITS,
        columns=("source", "label", "annotation", "sentence"),
    ),
    "sst2": GlueTask("SST-2", "sst2", "sentence", None, "label", ("negative", "positive"), _BITS),
    "mrpc": GlueTask("MRPC", "mrpc", "#1 String", "#2 String", "Quality", ("not_equivalent", "equivalent"), _BITS),
    "stsb": GlueTask("STS-B", "stsb", "sentence1", "sentence2", "score", (), ()),
    # A few questions of QQP are empty, or have a line feed in them, which cuts their row in two.
    "qqp": GlueTask(
        "QQP", "qqp", "question1", "question2", "is_duplicate", ("not_duplicate", "duplicate"), _BITS, damaged=64
    ),
    "mnli": GlueTask("MNLI", "mnli", "sentence1", "sentence2", "gold_label", _THREE_WAY, _THREE_WAY, dev="dev_matched"),
    "mnli-mm": GlueTask(
        "MNLI", "mnli", "sentence1", "sentence2", "gold_label", _THREE_WAY, _THREE_WAY, dev="dev_mismatched"
    ),
    "qnli": GlueTask("QNLI", "qnli", "question", "sentence", "label", _ENTAILMENT, _ENTAILMENT),
    "rte": GlueTask("RTE", "rte", "sentence1", "sentence2", "label", _ENTAILMENT, _ENTAILMENT),
}


def load_glue(source: str, split: Split, task_type: TaskType | None = None) -> TaskData:
    """One split of `glue:TASK` (by `datasets`) or `glue:TASK=DIR` (from files).

    Args:
        source: TASK is one of `TASKS`; `mnli` and `mnli-mm` have the same train rows, and the matched and the
            mismatched dev set to validate on. DIR is the archive's folder, or that of the task in it.
        task_type: None, or what the task is.

    Raises:
        InvalidConfig: no such task, or it is of another type.
        InvalidData: the test split is asked for, or the files are missing or malformed (`FILE:LINE: …`).
    """
    name, task, directory = _parse(source)
    if task_type not in (None, task.task_type):
        raise InvalidConfig(f"{PREFIX}{name} is a {task.task_type} task, not {task_type}")
    if split == "test":
        raise InvalidData(
            f"GLUE keeps the labels of its test sets to itself: measure {PREFIX}{name} with --split validation",
            reason="SPLIT_MISSING",
        )
    if directory is None:
        return _from_hub(name, task, split)
    rows = _local_rows(task, Path(directory), split)
    return assemble(PREFIX + name, {split: rows}, split, task.task_type, task.labels or None, is_split=True)


def check_glue(source: str) -> None:
    """Raise InvalidConfig unless there is something to read. Looks at no row."""
    _, _, directory = _parse(source)
    if directory is None:
        try:
            check(_HUB_NAME)
        except InvalidData as error:
            raise InvalidConfig(error.message, field="data") from None
    elif not Path(directory).is_dir():
        raise InvalidConfig(f"{Path(directory).name} is not a directory with GLUE's files", field="data")


def _parse(source: str) -> tuple[str, GlueTask, str | None]:
    """The parts of `glue:TASK[=DIR]`. Raises InvalidConfig."""
    name, is_local, directory = source.removeprefix(PREFIX).partition("=")
    task = TASKS.get(name)
    if task is None:
        raise InvalidConfig(
            f"{name[:40]!r} is not one of the GLUE tasks {', '.join(TASKS)}{nearest(name, TASKS)}", field="data"
        )
    if is_local and not directory:
        raise InvalidConfig(f"{source} names no directory: write {PREFIX}{name}=DIR", field="data")
    return name, task, directory if is_local else None


def glue_files(source: str) -> list[Path]:
    """The files that `load_glue` reads of `glue:TASK=DIR` for either split; none of `glue:TASK`."""
    name, _, directory = source.removeprefix(PREFIX).partition("=")
    task = TASKS.get(name)
    if task is None or not directory:
        return []
    names = ["train.tsv", f"{task.dev}.tsv", *((_MRPC_FILE, _MRPC_DEV_IDS) if name == "mrpc" else ())]
    return [path for file in names if (path := _folder(Path(directory), task) / file).exists()]


def _folder(directory: Path, task: GlueTask) -> Path:
    """The archive's folder of the task, or that of the task itself."""
    return directory / task.folder if (directory / task.folder).is_dir() else directory


def _from_hub(name: str, task: GlueTask, split: Split) -> TaskData:
    dev = task.dev.replace("dev", "validation")
    hub = read_hub(f"{_HUB_NAME}:{task.config}", split, {"train": ("train",), "validation": (dev,)})
    if hub.label_names != (task.labels or None):
        raise InvalidData(f"{_HUB_NAME}:{task.config} has other labels than GLUE: {hub.label_names}")
    return assemble(PREFIX + name, hub.parts, split, task.task_type, hub.label_names, is_split=True)


def _local_rows(task: GlueTask, directory: Path, split: Split) -> Iterator[Row]:
    if not directory.is_dir():
        raise InvalidData(f"{directory.name} is not a directory with GLUE's files")
    folder = _folder(directory, task)
    path = folder / f"{'train' if split == 'train' else task.dev}.tsv"
    if not path.exists() and task.config == "mrpc" and (folder / _MRPC_FILE).exists():
        return _original_mrpc(task, folder, split)
    if not path.exists():
        raise InvalidData(f"{folder.name} has no {path.name}, as GLUE's {task.folder} does", reason="SPLIT_MISSING")
    return (row for row, _ in _rows(path, task))


def _original_mrpc(task: GlueTask, folder: Path, split: Split) -> Iterator[Row]:
    """MRPC as Microsoft publishes it: one file for both splits, and the pairs of ids that GLUE made its dev set."""
    ids_path = folder / _MRPC_DEV_IDS
    if not ids_path.exists():
        raise InvalidData(
            f"{folder.name} has {_MRPC_FILE} without GLUE's {_MRPC_DEV_IDS}, which says which rows are the dev set"
        )
    check_file(ids_path, MAX_FILE_BYTES)
    dev = {tuple(line.split()) for line in read_lines(ids_path)}
    for row, fields in _rows(folder / _MRPC_FILE, task):
        if ((fields["#1 ID"], fields["#2 ID"]) in dev) == (split == "validation"):
            yield row


def _rows(path: Path, task: GlueTask) -> Iterator[tuple[Row, dict[str, str]]]:
    """The rows of a file, each with all of its fields by the columns' names."""
    check_file(path, MAX_FILE_BYTES)
    columns = task.columns
    damaged = 0
    for number, line in enumerate(read_lines(path), start=1):
        where, values = f"{path.name}:{number}", line.rstrip("\r\n").split("\t")
        if values == [""]:
            continue
        if columns is None:
            columns = tuple(values)
            _check_header(where, columns, task)
            continue
        fields = dict(zip(columns, values, strict=False))
        if len(values) != len(columns) or not all(fields[text].strip() for text in (task.text, task.pair) if text):
            damaged += 1
            if damaged > task.damaged:
                raise InvalidData(
                    f"{where}: {len(values)} fields where {len(columns)} are expected, or an empty text; "
                    "fields are separated by tabs, and quotes mean nothing"
                )
            continue
        yield (
            Row(where, fields[task.text], fields[task.pair] if task.pair else None, _label(where, fields, task)),
            fields,
        )


def _check_header(where: str, columns: tuple[str, ...], task: GlueTask) -> None:
    for wanted in (task.text, task.pair, task.label):
        if wanted is not None and columns.count(wanted) != 1:
            raise InvalidData(f"{where}: no column named {wanted}, as GLUE's {task.folder} has, but {columns[:16]}")


def _label(where: str, fields: dict[str, str], task: GlueTask) -> str:
    """The label's id as a text, or the number to regress on."""
    value = fields[task.label].strip()
    if not task.spelled:
        return value
    if value not in task.spelled:
        raise InvalidData(f"{where}: label {value[:40]!r} is not one of {', '.join(task.spelled)}")
    return str(task.spelled.index(value))
