"""The command `adamix bench serving`: parse, call one function, print. Heavy libraries are imported inside."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from adamix.cli import checks
from adamix.cli.terminal import JsonFlag, exit_codes
from adamix_bench.serving.settings import Settings

_DEFAULTS = Settings()


def serving(
    tasks: Annotated[int, typer.Option(help="Distinct tasks.")] = _DEFAULTS.tasks,
    popularity: Annotated[
        str, typer.Option(help="distinct (in turns), uniform, zipf or identical.")
    ] = _DEFAULTS.popularity,
    loop: Annotated[str, typer.Option(help="closed or open.")] = _DEFAULTS.loop,
    in_flight: Annotated[int, typer.Option(help="Calls a closed loop keeps open.")] = _DEFAULTS.in_flight,
    inputs_per_call: Annotated[int, typer.Option(help="Inputs of a call.")] = _DEFAULTS.inputs_per_call,
    rate: Annotated[float | None, typer.Option(help="Calls a second of an open loop.")] = None,
    cv: Annotated[float, typer.Option(help="Variation of its Gamma arrivals; 1 is Poisson.")] = _DEFAULTS.cv,
    slots: Annotated[int | None, typer.Option(help="Slots of the server.  [default: the server's]")] = None,
    resident_share: Annotated[float | None, typer.Option(help="Slots as a share of the tasks.")] = None,
    slo_ms: Annotated[float, typer.Option(help="Latency up to which an answer counts as good.")] = _DEFAULTS.slo_ms,
    requests: Annotated[int, typer.Option(help="Inputs per way and repetition.")] = _DEFAULTS.requests,
    seconds: Annotated[float | None, typer.Option(help="Bound a closed loop by time instead.")] = None,
    repetitions: Annotated[int, typer.Option(help="Turns that count.")] = _DEFAULTS.repetitions,
    backbone: Annotated[str, typer.Option(help="A directory, a hub id, or `minilm`.")] = _DEFAULTS.backbone,
    max_batch_tokens: Annotated[int, typer.Option(help="Token budget of a batch.")] = _DEFAULTS.max_batch_tokens,
    threads: Annotated[int, typer.Option(help="Threads of the operators.  [0: one per core]")] = _DEFAULTS.threads,
    front_ends: Annotated[int, typer.Option(help="Front-end processes of the server.")] = _DEFAULTS.front_ends,
    server: Annotated[str | None, typer.Option(help="HOST:PORT of a running server to ask.  [default: own]")] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Also padded transformers and PEFT, in process.")] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Also the engine as it runs with that flag, in process.")
    ] = False,
    targets: Annotated[bool, typer.Option("--targets", help="Measure everything that has a target.")] = False,
    against: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Compare processor time with the server of another checkout and its .venv."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run: tiny random backbone, few requests.")] = False,
    seed: Annotated[int, typer.Option(help="Of weights, texts, tasks and arrivals.")] = _DEFAULTS.seed,
    out: Annotated[Path, typer.Option(help="Directory of the JSON and the plot.")] = Path("bench-output"),
    json_: JsonFlag = False,
) -> None:
    """Throughput and latency of mixed adapters, against the bare backbone and others, in one run."""
    with exit_codes():
        settings = Settings(
            backbone=backbone,
            tasks=tasks,
            popularity=popularity,  # type: ignore[arg-type]  # checked by the dataclass, as is the loop
            loop=loop,  # type: ignore[arg-type]
            in_flight=in_flight,
            inputs_per_call=inputs_per_call,
            rate=rate,
            cv=cv,
            slots=slots,
            resident_share=resident_share,
            slo_ms=slo_ms,
            requests=requests,
            seconds=seconds,
            repetitions=repetitions,
            max_batch_tokens=max_batch_tokens,
            threads=threads,
            front_ends=front_ends,
            server=server,
            peers=peers,
            deterministic=deterministic,
            seed=seed,
        )
        checks.names(None if quick else backbone)
        from adamix_bench.serving.run import run

        command = sys.argv[1:]
        document = run(settings, targets=targets, against=against, quick=quick, out=out, command=command, quiet=json_)
        if json_:
            typer.echo(json.dumps(document))
        if not document["complete"]:
            raise typer.Exit(1)
