"""`adamix embed`: the numbers that a task gives for texts.

All texts of one command are answered by one version: numbers of different ones cannot be compared.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adamix.cli.terminal import JsonFlag, exit_codes, stderr
from adamix.errors import FailedPrecondition, InvalidConfig, InvalidData
from adamix.texts import MAX_TEXT_BYTES
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption
from adamix_server.cli.printing import safe, short, show
from adamix_server.cli.task_call import find_version, task_call

if TYPE_CHECKING:
    from adamix_client import Client

_STDIN = "-"


def embed(
    task: Annotated[str, typer.Argument(metavar="TASK")],
    text: Annotated[list[str], typer.Argument(help="Texts; - reads them from stdin, one a line.")],
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long.")] = False,
    version: Annotated[str, typer.Option(help="Ask this version instead of the live one.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="Write them to this .npy file, float32 [texts, dim].  [default: stdout]")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Print the embedding of each text, a line each."""
    with exit_codes():
        if out is not None and out.suffix != ".npy":
            raise InvalidConfig(f"--out {out}: the name must end in .npy", field="out")
        if out is not None and not out.parent.is_dir():
            raise InvalidConfig(f"--out: there is no directory {out.parent}", field="out")
        texts = _texts(text)
        with task_call(task, server, api_key_file) as client:
            digest = find_version(client, task, version) if version else ""
            digest, vectors = _ask(client, task, texts, digest, truncate=truncate)
        document = {"task": task, "version": digest, "texts": len(vectors), "dim": len(vectors[0])}
        if out is not None:
            _write(out, vectors)
            stderr.print(f"{len(vectors):,} of {document['dim']} numbers in {safe(str(out))}", soft_wrap=True)
            if json_:
                show(document, "", as_json=True)
        elif json_:
            show({**document, "embeddings": vectors}, "", as_json=True)
        else:
            for vector in vectors:
                typer.echo(" ".join(f"{value:.7g}" for value in vector))
            stderr.print(f"version {short(digest)}")


def _texts(given: Sequence[str]) -> list[str]:
    """Raises InvalidConfig, InvalidData: nothing to ask, or what is no text."""
    if _STDIN not in given:
        texts = list(given)
    elif len(given) > 1:
        raise InvalidConfig("- stands for all texts: give it alone", field="text")
    else:
        # A byte order mark is an editor's, and a last end of a line the shell's.
        try:
            texts = sys.stdin.buffer.read().decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise InvalidData("stdin is not UTF-8", field="text") from None
        if not texts:
            raise InvalidData("stdin is empty", field="text")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise InvalidData(f"text {number} is empty", field="text")
        if len(text.encode("utf-8", "surrogatepass")) > MAX_TEXT_BYTES:
            raise InvalidData(f"text {number} is over {MAX_TEXT_BYTES >> 10} KiB", field="text")
    return texts


def _ask(
    client: "Client", task: str, texts: Sequence[str], digest: str, *, truncate: bool
) -> tuple[str, list[tuple[float, ...]]]:
    """The version that answered, and a vector for each text.

    Raises:
        FailedPrecondition: the task gives something else (`NOT_AN_EMBEDDING`).
        AdamixError: what the first text that failed has met; it names the text.
    """
    from adamix_client import Embedding

    found = [] if digest else client.predict(task, texts[:1], truncate=truncate)
    if not digest:
        digest = found[0].version
    # The first text says which version is live; all others, and with them itself, go to that one.
    if len(texts) > len(found):
        found = client.predict(task, texts, version=digest, truncate=truncate)
    vectors = []
    for prediction in found:
        if not isinstance(prediction.result, Embedding):
            raise FailedPrecondition(
                f"{task} gives no embeddings: ask it with `adamix predict`", reason="NOT_AN_EMBEDDING"
            )
        vectors.append(prediction.result.values)
    return digest, vectors


def _write(out: Path, vectors: Sequence[Sequence[float]]) -> None:
    import numpy as np

    with out.open("wb") as file:
        np.save(file, np.asarray(vectors, dtype=np.float32), allow_pickle=False)
