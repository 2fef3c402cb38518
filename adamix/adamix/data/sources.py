"""Which reader a `--data` value means: a packaged corpus, a path, or a name for the `datasets` library."""

import os
from pathlib import Path

from adamix.data.corpora import CORPORA
from adamix.data.files import SUFFIXES, read_parts, split_files
from adamix.data.generation.sources import generation_files
from adamix.data.generation.synthetic import SYNTHETIC_E2E
from adamix.data.glue import PREFIX as GLUE_PREFIX
from adamix.data.glue import check_glue, glue_files, load_glue
from adamix.data.hub import NAME, read_hub
from adamix.data.hub import check as check_hub
from adamix.data.rows import assemble, check_arguments
from adamix.data.task import SPLITS, TaskData
from adamix.errors import InvalidConfig, InvalidData
from adamix.hub import nearest


def load(source: str, *, split: str, task_type: str | None = None) -> TaskData:
    """One split of a labelled data set.

    Args:
        source: a packaged corpus (`CORPORA`; to mean a path of that name, write `./trec`); a `.csv` or `.jsonl`
            file, or a directory of such files named train, validation and test; `glue:TASK` or `glue:TASK=DIR`
            (see `load_glue`); or `NAME[:CONFIG]` of the `datasets` library.
        split: `train`, `validation` or `test`.
        task_type: `classification`, `multilabel` or `regression`; None takes what the source fixes or infers it.

    Raises:
        InvalidConfig: `split` or `task_type` is unknown, or the corpus is of another task type.
        InvalidData: no such source, a package is missing (`PACKAGE_MISSING`), the split is missing
            (`SPLIT_MISSING`), or a row is malformed; the message begins with `FILE:LINE` where there is one.
    """
    wanted, kind = check_arguments(split, task_type)
    if source == SYNTHETIC_E2E:
        raise InvalidData(f"{source} has texts to generate and no labels")
    if source in CORPORA:
        corpus = CORPORA[source]
        if kind is not None and kind != corpus.task_type:
            raise InvalidConfig(f"{source} is a {corpus.task_type} corpus, not {kind}")
        return assemble(source, {"train": corpus.rows()}, wanted, corpus.task_type)
    if source.startswith(GLUE_PREFIX):
        return load_glue(source, wanted, kind)
    path = Path(source).absolute()
    if _is_path(source):
        return assemble(path.stem, read_parts(path), wanted, kind)
    if NAME.fullmatch(source) is None:
        raise InvalidData(_nothing(source))
    hub = read_hub(source, wanted)
    label_names = hub.label_names if kind in (None, hub.task_type) else None
    return assemble(source, hub.parts, wanted, kind or hub.task_type, label_names, is_split=hub.is_split)


def check(source: str) -> None:
    """Raise unless there is something to read of that name, in less than two seconds; no row is looked at.

    Raises:
        InvalidConfig: there is nothing; the message says what was tried.
        InvalidData: a package with the texts is missing.
    """
    if source in CORPORA:
        CORPORA[source].locate()
    elif source.startswith(GLUE_PREFIX):
        check_glue(source)
    elif source != SYNTHETIC_E2E and not _is_path(source):
        if source.startswith((".", "/", "~")) or NAME.fullmatch(source) is None:
            raise InvalidConfig(_nothing(source), field="data")
        try:
            check_hub(source)
        except InvalidData as error:
            raise InvalidConfig(error.message, field="data") from None
    elif source != SYNTHETIC_E2E and not os.path.exists(source):  # noqa: PTH110 - as in `load`
        raise InvalidConfig(f"{Path(source).name} does not exist", field="data")


def _is_path(source: str) -> bool:
    """Whether a source means this machine's files, be they there or not."""
    # os.path.exists, because Path.exists raises for names that no file can have.
    return bool(source) and (os.path.exists(source) or Path(source).suffix in SUFFIXES)  # noqa: PTH110


def _nothing(source: str) -> str:
    return (
        f"{source[:80]!r} is no file, and no corpus{nearest(source, CORPORA)}: those are {', '.join(sorted(CORPORA))}"
    )


def local_files(source: str) -> dict[str, Path]:
    """The files on this machine that `load` or `load_generation` reads of a source, for any split.

    Returns:
        the files by their names, below the directory if the source is one; none of a corpus, of a name for the
        library `datasets`, or where there is nothing to read.
    """
    if source in CORPORA or source == SYNTHETIC_E2E:
        return {}
    if source.startswith(GLUE_PREFIX):
        return {file.name: file for file in glue_files(source)}
    path = Path(source)
    if not path.is_dir():
        return {path.name: path} if os.path.exists(path) else {}  # noqa: PTH110 - as in `load`
    files = {file for split in SPLITS for file in split_files(path, split)}.union(generation_files(path))
    return {file.relative_to(path).as_posix(): file for file in sorted(files)}
