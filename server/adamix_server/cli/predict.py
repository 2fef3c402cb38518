"""`adamix predict`."""

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from adamix.cli.terminal import JsonFlag, Screen, exit_codes
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect

if TYPE_CHECKING:
    from adamix_client import Prediction


def predict(
    task: Annotated[str, typer.Argument()],
    text: Annotated[list[str], typer.Argument(help="One or more texts.")],
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long.")] = False,
    version: Annotated[str, typer.Option(help="Ask this version instead of the live one.")] = "",
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Ask a task about texts. The exit code is 1 if any of them failed."""
    with exit_codes(), connect(server, api_key_file) as client:
        from adamix_client import Input

        inputs = [Input(task=task, text=item, truncate=truncate, version=version) for item in text]
        if json_:
            document = client.predict_json(inputs)
            typer.echo(json.dumps(document))
            failed = any("error" in prediction for prediction in document["predictions"])
        else:
            predictions = client.predict(inputs).predictions
            table = Table("text", "answer", "score")
            for item, prediction in zip(text, predictions, strict=True):
                table.add_row(escape(item[:80]), *_answer(prediction))
            Screen().print(table)
            failed = any(prediction.error is not None for prediction in predictions)
        if failed:
            raise typer.Exit(1)


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
