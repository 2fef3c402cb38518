"""Rows of a data set of the `datasets` library, which is optional and imported only when one is asked for."""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adamix import hub
from adamix.data.corpora import CORPORA
from adamix.data.rows import Row
from adamix.data.task import Split, TaskType
from adamix.errors import InvalidData

NAME = re.compile(r"(?P<name>[\w-][\w.-]*(/[\w-][\w.-]*)?)(:(?P<config>[\w.-]+))?", re.ASCII)

# (text, text_pair) by the column names in use; the first whose columns are all there is taken, so pairs come before
# single texts of the same names: a `question` about a `sentence` (QNLI) is no `sentence` alone.
TEXT_COLUMNS: tuple[tuple[str, str | None], ...] = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("text", None),
    ("sentence", None),
)
LABEL_COLUMNS = ("label", "labels")
_SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "validation_matched", "dev"),
    "test": ("test", "test_matched"),
}


@dataclass(frozen=True)
class HubRows:
    """What `assemble` needs.

    `label_names` is None where the data set does not fix the names of its ids. `is_split` says whether it has other
    splits than train, be they among the `parts` or not.
    """

    parts: dict[Split, Iterator[Row]]
    task_type: TaskType | None
    label_names: tuple[str, ...] | None
    is_split: bool


def read_hub(source: str, split: Split, names: Mapping[Split, tuple[str, ...]] = _SPLIT_NAMES) -> HubRows:
    """The rows of `NAME` or `NAME:CONFIG`. Parts that the answer does not depend on are left out.

    Args:
        names: what the data set may call each split.

    Raises:
        InvalidData: the library is missing, it cannot load the data set, or the columns are not known.
    """
    found = load_splits(source, names)
    features = next(iter(found.values())).features
    task_type, label_names = read_label_feature(features)
    is_split = set(found) != {"train"}
    if label_names is not None and split in found and is_split:
        found = {split: found[split]}
    parts = {part: _rows(source, part, data) for part, data in found.items()}
    return HubRows(parts, task_type, label_names, is_split)


def check(source: str) -> re.Match[str]:
    """The parts of `NAME[:CONFIG]`, if somebody can be asked for it; takes less than two seconds.

    Raises:
        InvalidData: it is no name, the library is missing (`LIBRARY_MISSING`), or the hub cannot be asked and nothing
            of the data set is in its cache (`HUB_UNREACHABLE`); the message says what was tried.
    """
    match = NAME.fullmatch(source)
    if match is None:
        raise InvalidData(f"{source[:80]!r} is not a data set name (NAME or NAME:CONFIG)")
    if importlib.util.find_spec("datasets") is None:
        how = "which needs the library `datasets`: pip install datasets"
        raise InvalidData(hub.nothing("data", source, CORPORA, how), reason="LIBRARY_MISSING")
    if not hub.is_name(match["name"]):
        raise InvalidData(hub.nothing("data", source, CORPORA, "it is no name there"))
    why = hub.unreachable()
    if why is not None and not hub.has_data(match["name"]):
        how = f"unreachable: {why}; not in its cache"
        raise InvalidData(hub.nothing("data", source, CORPORA, how), reason="HUB_UNREACHABLE")
    return match


def load_splits(source: str, names: Mapping[Split, tuple[str, ...]] = _SPLIT_NAMES) -> dict[Split, Any]:
    """The data set of each split that `NAME` or `NAME:CONFIG` has. Raises InvalidData as `read_hub` does."""
    match = check(source)
    import datasets  # here, because it is optional and slow to import

    was_offline = datasets.config.HF_HUB_OFFLINE
    # Then it takes what is in its cache, where it would else wait for the hub as long as its client does.
    datasets.config.HF_HUB_OFFLINE = was_offline or hub.unreachable() is not None
    try:
        loaded = datasets.load_dataset(match["name"], match["config"])
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InvalidData(f"`datasets` cannot load {source}: {first_line[:200]}") from None
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
    found: dict[Split, Any] = {
        part: loaded[name] for part, candidates in names.items() for name in candidates[::-1] if name in loaded
    }
    if not found:
        raise InvalidData(f"{source} has the splits {', '.join(loaded)}, none of them train, validation or test")
    return found


def _rows(source: str, split: Split, data: Any) -> Iterator[Row]:
    columns = data.features
    texts = next((pair for pair in TEXT_COLUMNS if all(c is None or c in columns for c in pair)), None)
    label = next((column for column in LABEL_COLUMNS if column in columns), None)
    if texts is None or label is None:
        raise InvalidData(f"{source} has the columns {', '.join(columns)}; there must be text (text_pair) and label")
    text, pair = texts
    for number, row in enumerate(data.select_columns([c for c in (text, pair, label) if c is not None])):
        yield Row(f"{source} {split} row {number}", row[text], row[pair] if pair else None, row[label])


def read_label_feature(features: Any) -> tuple[TaskType | None, tuple[str, ...] | None]:
    """The task type and label names that the declared type of the label column fixes, where it does."""
    feature = next((features[column] for column in LABEL_COLUMNS if column in features), None)
    names = getattr(feature, "names", None)
    if names:
        return "classification", tuple(names)
    inner = getattr(feature, "feature", None)
    if inner is not None:
        inner_names = getattr(inner, "names", None)
        return "multilabel", tuple(inner_names) if inner_names else None
    if str(getattr(feature, "dtype", "")).startswith("float"):
        return "regression", None
    return None, None
