"""`adamix generate`: a text on the terminal as it is written, or those of a file of prompts.

stdout carries the text alone, piece by piece; how it ended stands on stderr.
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from adamix.cli.terminal import JsonFlag, exit_codes, stderr, visible
from adamix.errors import InvalidConfig, InvalidData
from adamix.texts import MAX_TEXT_BYTES
from adamix_server.cli.asking import Asking, encoded
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.cli.task_call import find_version, offering

if TYPE_CHECKING:
    from adamix_client import Client, GenerateDelta

_STDIN = "-"


def generate(
    task: Annotated[str, typer.Argument()],
    prompt: Annotated[str | None, typer.Argument(help="The text to go on from; - reads it from stdin.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="JSONL of prompts instead: a prompt, a source or messages in each row.  [default: none]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Of --file: the rows with text and finish_reason; goes on if rows are there.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens of the text.  [default: 64]")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 to 5; 0 takes the likeliest token each time.  [default: 0]")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many tokens; 0 is all.  [default: 0]")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens of this probability.  [default: 1]")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Draw from tokens of this share of the likeliest one's.  [default: 0]")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Divides the scores of generated tokens.  [default: 1]")
    ] = None,
    presence_penalty: Annotated[float | None, typer.Option(help="Taken off them once, -2 to 2.  [default: 0]")] = None,
    frequency_penalty: Annotated[
        float | None, typer.Option(help="Taken off them for each time, -2 to 2.  [default: 0]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws; the server's choice is told.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; repeatable.  [default: none]")] = None,
    num_beams: Annotated[int | None, typer.Option(help="Beams, up to 16.  [default: 1]")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Of beams, -5 to 5.  [default: 1]")] = None,
    no_repeat_ngram_size: Annotated[
        int | None, typer.Option(help="No sequence of so many tokens twice; 0 allows it.  [default: 0]")
    ] = None,
    logprobs: Annotated[
        int, typer.Option(help="Report the probabilities of tokens, and of so many others, up to 20.")
    ] = 0,
    token_ids: Annotated[bool, typer.Option("--token-ids", help="Report the ids of the tokens.")] = False,
    version: Annotated[str, typer.Option(help="Ask this version instead of the live one.")] = "",
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Let a task write a text, and show it as it comes."""
    with exit_codes():
        asking = Asking(
            task=task,
            version=version,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            seed=seed,
            num_beams=num_beams,
            length_penalty=length_penalty,
            stop=stop or (),
            logprobs=logprobs,
            token_ids=token_ids,
        )
        if file is not None:
            _write_file(asking, prompt, file, out, server, api_key_file, as_json=json_)
            return
        if out is not None:
            raise InvalidConfig("--out is where the rows of --file go", field="out")
        text = _prompt(prompt)
        with connect(server, api_key_file) as client, offering(client, task):
            asking = _of_one_version(asking, client)
            with closing(asking.begin(client, text)) as deltas:
                show = _collect if json_ else _stream
                show(deltas)


def _write_file(
    asking: Asking,
    prompt: str | None,
    file: Path,
    out: Path | None,
    server: str,
    api_key_file: Path | None,
    *,
    as_json: bool,
) -> None:
    from adamix_server.cli.prompt_file import PromptFile

    if prompt is not None:
        raise InvalidConfig("a PROMPT and --file are two ways to ask; give one", field="file")
    if out is None:
        raise InvalidConfig("--file needs --out, where its rows go with their texts", field="out")
    with PromptFile(file, out) as prompts, connect(server, api_key_file) as client:
        written = prompts.write(_of_one_version(asking, client), client)
    if as_json:
        typer.echo(json.dumps(written.document))
    if written.failed:
        raise typer.Exit(1)


def _of_one_version(asking: Asking, client: "Client") -> Asking:
    """With the whole digest for the beginning of it that was typed."""
    if not asking.version:
        return asking
    return replace(asking, version=find_version(client, asking.task, asking.version))


def _prompt(given: str | None) -> str:
    if given is None:
        raise InvalidConfig("give a PROMPT, - for one on stdin, or --file", field="prompt")
    if given == _STDIN:
        # One end of a line is the shell's, or an editor's.
        data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 2).removesuffix(b"\n").removesuffix(b"\r")
    else:
        data = encoded(given, "prompt")
    if len(data) > MAX_TEXT_BYTES:
        raise InvalidData(f"the prompt is over {MAX_TEXT_BYTES >> 10} KiB", field="prompt")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidData("the prompt is not UTF-8", field="prompt") from None
    if not text:
        raise InvalidConfig("the prompt is empty", field="prompt")
    return text


def _collect(deltas: "Iterable[GenerateDelta]") -> None:
    """All of it as one document."""
    from adamix_client import GeneratedText

    typer.echo(json.dumps(GeneratedText.of(deltas).document))


def _stream(deltas: "Iterable[GenerateDelta]") -> None:
    """The text on stdout as it comes, its end on a line of its own on stderr."""
    from adamix_client import GeneratedText

    began = time.monotonic()
    text = GeneratedText.of(_shown(deltas))
    count = text.usage.generated_tokens
    _say(
        f"{text.finish_reason}: {count} tokens after {text.usage.prompt_tokens}, "
        f"{count / (time.monotonic() - began):.1f} tokens/s, seed {text.seed}, version {text.version[:12]}"
    )
    if text.token_ids:
        _say("token ids: " + " ".join(map(str, text.token_ids)))
    for found in text.logprobs:
        others = "".join(f", {other.token_id} {other.logprob:.4f}" for other in found.alternatives)
        _say(f"token {found.token_id}: {found.logprob:.4f}{others}")


def _shown(deltas: "Iterable[GenerateDelta]") -> "Iterator[GenerateDelta]":
    """The deltas, each after its text was written."""
    is_terminal = sys.stdout.isatty()
    is_open = False
    try:
        for delta in deltas:
            if delta.text:
                is_open = not delta.text.endswith("\n")
                _put(visible(delta.text) if is_terminal else delta.text)
            yield delta
    finally:
        # Also after an error or Ctrl-C: what is said of it begins a line.
        if is_open:
            _put("\n")


def _put(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads any more, as after `| head`; nor is there anything to flush at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None


def _say(line: str) -> None:
    stderr.print(escape(line), soft_wrap=True)
