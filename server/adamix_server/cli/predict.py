"""`adamix predict`: texts on the command line, lines of stdin, or the rows of a file."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from adamix.cli.terminal import JsonFlag, exit_codes, stderr, visible
from adamix.errors import InvalidConfig, InvalidData
from adamix_client.bounds import MAX_INPUTS_PER_CALL
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.cli.printing import show
from adamix_server.cli.rows import answers as said
from adamix_server.cli.rows.asking import Question
from adamix_server.cli.rows.row import Choice, Row
from adamix_server.cli.task_call import find_version, offering
from adamix_server.limits.files import MAX_CONCURRENCY, MAX_ROW_BYTES
from adamix_server.names import is_digest

if TYPE_CHECKING:
    from adamix_client import Client, Prediction

_STDIN = "-"
_KEEP, _STOP = "keep", "stop"
_SHOWN_CHARS = 80
# A label is anybody's, and a line of stdout is one of stdin's.
_ONE_LINE = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})


def predict(
    task: Annotated[str, typer.Argument(help="The id of the task.")],
    text: Annotated[list[str] | None, typer.Argument(help="Texts; - reads one from each line of stdin.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="The rows of a CSV, TSV, JSONL or Parquet file instead; all but the last also as .gz."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Of --file: where its rows go with their answers, in the format they have.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Of --file: the column of the texts.  [default: text]")] = None,
    pair_column: Annotated[
        str | None,
        typer.Option(help="Of --file: the column of second texts.  [default: text_pair beside text, if there is one]"),
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="csv, tsv, jsonl or parquet.  [default: as FILE is called]")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Of --file: calls under way at once, of up to 64 rows each.")] = 4,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite/--resume", help="Of --file: answer all rows anew, or go on with those that are there."
        ),
    ] = False,
    on_error: Annotated[
        str, typer.Option(help="Of --file: keep the error of a row and go on, or stop at it: keep or stop.")
    ] = _KEEP,
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long.")] = False,
    version: Annotated[str, typer.Option(help="Ask this version instead of the live one.")] = "",
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Ask a task about texts. The exit code is 1 if any of them failed."""
    with exit_codes():
        question = Question(task=task, version=version, truncate=truncate)
        given = text or []
        if file is not None:
            if given:
                raise InvalidConfig("TEXT and --file are two ways to ask; give one", field="file")
            if out is None:
                raise InvalidConfig("--file needs --out, where its rows go with their answers", field="out")
            if not 1 <= concurrency <= MAX_CONCURRENCY:
                raise InvalidConfig(f"--concurrency is 1 to {MAX_CONCURRENCY}, not {concurrency}", field="concurrency")
            if on_error not in (_KEEP, _STOP):
                raise InvalidConfig(f"--on-error is {_KEEP} or {_STOP}, not {on_error!r}", field="on_error")
            choice = Choice(column, pair_column, truncate)
            failed = _of_file(
                question,
                choice,
                file,
                out,
                format_,
                concurrency,
                (server, api_key_file),
                overwrite=overwrite,
                keep_errors=on_error == _KEEP,
                as_json=json_,
            )
        else:
            for name, value in (("out", out), ("column", column), ("pair_column", pair_column), ("format", format_)):
                if value is not None:
                    raise InvalidConfig(f"--{name.replace('_', '-')} is for the rows of --file", field=name)
            if not given:
                raise InvalidConfig("give a TEXT, - for lines of stdin, or --file", field="text")
            if _STDIN in given and len(given) > 1:
                raise InvalidConfig("- stands alone: texts are on the command line or on stdin", field="text")
            question = _of_one_version(question, server, api_key_file)
            with connect(server, api_key_file) as client, offering(client, task):
                if given == [_STDIN] and not json_:
                    failed = _answer_lines(client, question)
                else:
                    texts = list(_texts(_lines())) if given == [_STDIN] else given
                    failed = (_document if json_ else _table)(client, question, texts)
        if failed:
            raise typer.Exit(1)


def _of_one_version(question: Question, server: str, api_key_file: Path | None) -> Question:
    """With the whole digest for the beginning of it that was typed."""
    if not question.version or is_digest(question.version):
        return question
    with connect(server, api_key_file) as client, offering(client, question.task):
        return replace(question, version=find_version(client, question.task, question.version))


def _of_file(
    question: Question,
    choice: Choice,
    file: Path,
    out: Path,
    kind: str | None,
    concurrency: int,
    server: tuple[str, Path | None],
    *,
    overwrite: bool,
    keep_errors: bool,
    as_json: bool,
) -> bool:
    """Answer the rows of a file. Returns whether any of them failed."""
    from adamix_server.cli.rows.opening import format_of, open_rows

    rows = open_rows(file, format_of(file, out, kind), choice)
    from adamix_server.cli.rows.run import FileRun

    question = _of_one_version(question, *server)
    with FileRun(rows, file, out, question, choice, overwrite=overwrite) as run:
        if not run.is_answered:
            with connect(*server) as client, offering(client, question.task):
                run.ask(client, concurrency, keep_errors=keep_errors)
        written = run.write()
    if as_json:
        typer.echo(json.dumps(written.document))
    else:
        resumed = f", {written.resumed:,} of them before" if written.resumed else ""
        failed = f", {written.failed:,} failed" if written.failed else ""
        stderr.print(escape(f"{out.name}: {written.rows:,} rows{resumed}{failed}"), soft_wrap=True)
    return bool(written.failed)


def _answer_lines(client: "Client", question: Question) -> bool:
    """One line of stdout for each of stdin, empty for one that failed; what was wrong with it is told on stderr."""
    failed = False
    for row, answer in _one_by_one(client, question) if sys.stdin.isatty() else question.answers(client, _lines(), 1):
        if "error" in answer:
            failed = True
            stderr.print(escape(f"{row.where}: {said.error_text(answer['error'])}"), soft_wrap=True)
        cells = "\t".join(
            said.cell(answer, name).translate(_ONE_LINE) for name in said.NAMES if name in answer and name != "error"
        )
        typer.echo(visible(cells) if sys.stdout.isatty() else cells)
    return failed


def _one_by_one(client: "Client", question: Question) -> "Iterator[tuple[Row, said.Told]]":
    """For whoever types, and waits for an answer to each line."""
    for row in _lines():
        yield from question.answers(client, (row,), 1)


def _lines() -> Iterator[Row]:
    """The lines of stdin, each as soon as it is there."""
    number = 0
    while data := sys.stdin.buffer.readline(MAX_ROW_BYTES):
        number += 1
        try:
            text: str | bytes = data.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            text = data
        yield Choice(truncate=True).row(f"line {number}", text, is_pair=False)


def _texts(rows: Iterator[Row]) -> Iterator[str]:
    """Raises InvalidData for a line that is none; what else is wrong with one its answer says."""
    for row in rows:
        if row.problem is not None and row.problem.reason == "TEXT_INVALID":
            raise InvalidData(f"{row.where}: {row.problem.message}")
        yield row.text


def _document(client: "Client", question: Question, texts: Sequence[str]) -> bool:
    """The answers as the server gives them; those of several calls as of one."""
    from adamix_client import Input

    inputs = [Input(question.task, text=text, version=question.version, truncate=question.truncate) for text in texts]
    document: dict[str, Any] = {}
    for start in range(0, max(len(inputs), 1), MAX_INPUTS_PER_CALL):
        found = client.predict_json(inputs[start : start + MAX_INPUTS_PER_CALL])
        for name, seconds in document.get("timing", {}).items():
            if name.endswith("_s"):
                found["timing"][name] += seconds
        document = {**found, "predictions": [*document.get("predictions", ()), *found["predictions"]]}
    typer.echo(json.dumps(document))
    return any("error" in prediction for prediction in document["predictions"])


def _table(client: "Client", question: Question, texts: Sequence[str]) -> bool:
    predictions = client.predict(
        question.task, texts, version=question.version, truncate=question.truncate, on_error="return"
    )
    errors = [prediction.error for prediction in predictions if prediction.error is not None]
    if len(errors) == len(predictions) and len({error.reason for error in errors}) == 1:
        raise errors[0]
    table = Table("text", "answer", "score")
    for text, prediction in zip(texts, predictions, strict=True):
        table.add_row(escape(text[:_SHOWN_CHARS]), *_answer(prediction))
    show({}, table, as_json=False)
    return bool(errors)


def _answer(prediction: "Prediction") -> tuple[str, str]:
    from adamix_client import Classification, MultiLabel, Regression

    match prediction.result:
        case Classification(label=label, scores=scores):
            return escape(label), f"{max(scores):.3f}"
        case MultiLabel(labels=labels):
            return escape(", ".join(labels)) or "(none)", ""
        case Regression(score=score):
            return "", f"{score:.3f}"
        case None:
            return f"[red]{escape(str(prediction.error))}[/]", ""
        case embedding:
            return f"{len(embedding.values)} numbers", ""
