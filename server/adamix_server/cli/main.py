"""The `adamix` command: the method's commands, and those that run a server or talk to one.

Thin, as in `adamix.cli`: parse, call one function, print. stdout carries results only (`--json`: one document), stderr
progress and logs; the exit code is 0, 1 for a failure or 2 for wrong usage.
"""

import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adamix.cli import JsonFlag, app, exit_codes, publishing, stderr
from adamix_server.access.quotas import parse_quotas
from adamix_server.cli import audit as audit_commands
from adamix_server.cli import generate as generating
from adamix_server.cli import grants as grant_commands
from adamix_server.cli import keys as key_commands
from adamix_server.cli import store as store_commands
from adamix_server.cli import tenants as tenant_commands
from adamix_server.cli import who
from adamix_server.cli.connecting import DEFAULT_SERVER, KeyFileOption, ServerOption, connect
from adamix_server.config import AccessSettings, EngineSettings, FrontEndSettings, ServerConfig, TlsSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adamix.experiments.release import Publisher
    from adamix_client import Prediction
    from adamix_server.channel.engine_frames import Hello

# Packages that bring commands of their own, so that this one needs to import none of them.
PLUGIN_GROUP = "adamix.commands"


def _publisher(address: str, task: str | None) -> "Publisher":
    from adamix_server.cli import push

    return push.connect(address, task)


# The method trains; where its adapters go is this package's part.
publishing.offer(_publisher)
app.add_typer(store_commands.app, name="store")
app.add_typer(tenant_commands.app, name="tenants")
app.add_typer(key_commands.app, name="keys")
app.add_typer(grant_commands.app, name="grants")
app.command()(who.usage)
app.command()(who.whoami)
app.command()(audit_commands.audit)


@app.command()
def serve(
    backbone: Annotated[str, typer.Option(help="A directory, a hub id, `minilm` or `smollm2`.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT to answer on; port 0 takes a free one.")] = ServerConfig.listen,
    store: Annotated[Path, typer.Option(help="Directory of the adapters and the catalog.")] = ServerConfig.store,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = EngineSettings.device,
    dtype: Annotated[
        str, typer.Option(help="auto, float32, bfloat16 or float16.  [auto: fp32 on CPUs, bf16 on CUDA]")
    ] = EngineSettings.dtype,
    max_batch_tokens: Annotated[int, typer.Option(help="Token budget of a batch.")] = EngineSettings.max_batch_tokens,
    slots: Annotated[int, typer.Option(help="Most adapters on the device at once.")] = EngineSettings.slots,
    arena_mib: Annotated[int, typer.Option(help="Device memory for adapters, in MiB.")] = EngineSettings.arena_bytes
    >> 20,
    host_cache_mib: Annotated[
        int, typer.Option(help="Host memory for adapters, in MiB.")
    ] = EngineSettings.host_cache_bytes >> 20,
    front_ends: Annotated[
        int, typer.Option(help="Front-end processes, which share the port.")
    ] = ServerConfig.front_ends,
    adapter_root: Annotated[
        Path | None, typer.Option(help="Directory from which adapters may be registered by name.  [default: none]")
    ] = None,
    max_upload_seconds: Annotated[
        float, typer.Option(help="Seconds for receiving all of an adapter file.")
    ] = FrontEndSettings.max_upload_s,
    metrics_listen: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of /metrics, /livez and /readyz; port 0 takes a free one.  [default: none]"),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="The same on 127.0.0.1, by its port alone.  [default: none]")
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Network whose addresses stand for many callers, e.g. 10.0.0.0/8; repeatable.  [default: none]"
        ),
    ] = None,
    auth: Annotated[
        str, typer.Option(help="What callers show: none, or some of keys, jwt, mtls, with commas.")
    ] = "none",
    tls_cert: Annotated[
        Path | None, typer.Option(help="The server's certificate in PEM, read again when it changes.  [default: none]")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key in PEM.  [default: none]")] = None,
    client_ca: Annotated[
        Path | None, typer.Option(help="CA in PEM that callers' certificates are signed by.  [default: none]")
    ] = None,
    jwt_jwks: Annotated[
        Path | None,
        typer.Option(help="JWKS file of the issuer of tokens, read again when it changes.  [default: none]"),
    ] = None,
    jwt_issuer: Annotated[str, typer.Option(help="What `iss` of a token is.")] = "",
    jwt_audience: Annotated[str, typer.Option(help="What `aud` of a token has.")] = "",
    jwt_tenant_claim: Annotated[
        str, typer.Option(help="The claim of a token that names the tenant.")
    ] = AccessSettings.jwt_tenant_claim,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow an address other machines can reach, without TLS or keys.")
    ] = False,
    default_quota: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE, a limit of tenants that set none of their own, e.g. max_tasks=100; repeatable.  "
            "[default: none]"
        ),
    ] = None,
    drain_delay: Annotated[
        float, typer.Option(help="Seconds between reporting unhealthy and refusing calls.")
    ] = ServerConfig.drain_delay_s,
    drain_grace: Annotated[
        float, typer.Option(help="Seconds that running calls are given to end.")
    ] = ServerConfig.drain_grace_s,
    accept_catalog: Annotated[
        bool,
        typer.Option(
            "--accept-catalog", help="Go on with the catalog that is there, though it is not the one the store had."
        ),
    ] = False,
    audit_days: Annotated[int, typer.Option(help="Days for which the audit is kept.")] = ServerConfig.audit_days,
    threads: Annotated[int, typer.Option(help="Threads of the engine.  [0: one per core]")] = EngineSettings.threads,
    engine_stall_s: Annotated[
        float,
        typer.Option(help="An engine without a step for so many seconds is stuck; after three times that, replaced."),
    ] = EngineSettings.stall_s,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="Answers equal to the bit whatever shares a batch; float32 on CPUs alone."
        ),
    ] = EngineSettings.deterministic,
    kv_bytes: Annotated[
        int,
        typer.Option(
            help="Memory of a decoder for keys and values.  [0: a quarter of the free host memory up to 4 GiB, or 0.8 "
            "of the free device memory]"
        ),
    ] = EngineSettings.kv_bytes,
    max_running: Annotated[
        int,
        typer.Option(
            help="Texts that a decoder generates at once, half of --max-batch-tokens at most.  [0: 64 on CPUs, else "
            "256]"
        ),
    ] = EngineSettings.max_running,
    max_chunk_tokens: Annotated[
        int,
        typer.Option(
            help="Of a prompt that a decoder computes in one step beside running texts.  [0: 64 on CPUs, else 2048]"
        ),
    ] = EngineSettings.max_chunk_tokens,
    quantize: Annotated[
        str, typer.Option(help="In what a decoder's weights are kept: none (as --dtype says) or bf16.")
    ] = EngineSettings.quantize,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = ServerConfig.log_level,
) -> None:
    """Serve adapters over gRPC until SIGTERM or Ctrl-C. Logs are JSON lines on stderr."""
    with exit_codes():
        config = ServerConfig(
            engine=EngineSettings(
                backbone=backbone,
                device=device,
                dtype=dtype,  # type: ignore[arg-type]  # checked by the dataclass, as is the log level
                max_batch_tokens=max_batch_tokens,
                slots=slots,
                arena_bytes=arena_mib << 20,
                host_cache_bytes=host_cache_mib << 20,
                threads=threads,
                stall_s=engine_stall_s,
                deterministic=deterministic,
                kv_bytes=kv_bytes,
                max_running=max_running,
                max_chunk_tokens=max_chunk_tokens,
                quantize=quantize,  # type: ignore[arg-type]  # as `dtype`
            ),
            front_end=FrontEndSettings(
                adapter_root=adapter_root,
                max_upload_s=max_upload_seconds,
                trusted_proxies=tuple(trusted_proxy or ()),
                access=AccessSettings(
                    auth=tuple(kind.strip() for kind in auth.split(",")),  # type: ignore[misc]
                    jwt_jwks=jwt_jwks,
                    jwt_issuer=jwt_issuer,
                    jwt_audience=jwt_audience,
                    jwt_tenant_claim=jwt_tenant_claim,
                ),
                tls=TlsSettings.of(tls_cert, tls_key, client_ca),
                default_quotas=parse_quotas(default_quota or (), "--default-quota").to_map(),
            ),
            listen=listen,
            store=store,
            front_ends=front_ends,
            metrics_listen=metrics_listen,
            metrics_port=metrics_port,
            insecure=insecure,
            drain_delay_s=drain_delay,
            drain_grace_s=drain_grace,
            log_level=log_level,  # type: ignore[arg-type]
            audit_days=audit_days,
            accept_catalog=accept_catalog,
        )
        from adamix_server.supervisor import supervisor
        from adamix_server.telemetry import logs

        logs.configure(config.log_level, process="supervisor")
        supervisor.serve(config, _announce)


def _announce(address: str, hello: "Hello") -> None:
    import logging

    fields = {"address": address, "backbone": hello.spec.label, "device": hello.device, "dtype": hello.dtype}
    logging.getLogger(__name__).log(logging.INFO, "serving", extra=fields)
    if sys.stderr.isatty():
        stderr.print(f"[green]serving {hello.spec.label} on {address}[/] ({hello.device}, {hello.dtype}); Ctrl-C ends")


@app.command()
def register(
    task: Annotated[str, typer.Argument(help="The id that clients will call.")],
    file: Annotated[Path, typer.Argument(help="A merged adapter file.")],
    on_server: Annotated[
        bool, typer.Option("--on-server", help="FILE is a name below the server's --adapter-root.")
    ] = False,
    make_live: Annotated[bool, typer.Option(help="Answer with this version from now on.")] = True,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check the file and store nothing.")] = False,
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Upload an adapter as a new version of a task."""
    with exit_codes(), connect(server, api_key_file) as client:
        from adamix_client import ServerFile

        adapter = ServerFile(str(file)) if on_server else file
        result = client.register(task, adapter, make_live=make_live, validate_only=validate_only)
        _print(
            {"task": task, "version": _plain(result.version), "already_exists": result.already_exists},
            f"{task}: {result.version.digest}" + (" (was there already)" if result.already_exists else ""),
            as_json=json_,
        )


@app.command()
def tasks(server: ServerOption = DEFAULT_SERVER, api_key_file: KeyFileOption = None, json_: JsonFlag = False) -> None:
    """List the tasks of a server."""
    with exit_codes(), connect(server, api_key_file) as client:
        found = client.tasks()
        table = Table("task", "head", "labels", "live version", "note")
        for task in found:
            labels = ", ".join(task.labels[:6]) + (", …" if len(task.labels) > 6 else "")
            table.add_row(task.task, task.head_type, escape(labels), _shares(task.traffic), task.unavailable_reason)
        _print({"tasks": [_plain(task) for task in found]}, table, as_json=json_)


@app.command()
def versions(
    task: Annotated[str, typer.Argument()],
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """List the versions of a task, newest first."""
    with exit_codes(), connect(server, api_key_file) as client:
        found = client.versions(task)
        table = Table("version", "state", "live", "bytes", "created", "residency", "pinned")
        for version in found:
            table.add_row(
                version.digest[:12],
                version.state,
                "yes" if version.live else "",
                f"{version.num_bytes:,}",
                f"{version.create_time:%Y-%m-%d %H:%M}",
                version.residency,
                "yes" if version.pinned else "",
            )
        _print({"versions": [_plain(version) for version in found]}, table, as_json=json_)


@app.command()
def rollback(
    task: Annotated[str, typer.Argument()],
    server: ServerOption = DEFAULT_SERVER,
    api_key_file: KeyFileOption = None,
    json_: JsonFlag = False,
) -> None:
    """Make the version that was live before the current one live again."""
    with exit_codes(), connect(server, api_key_file) as client:
        result = client.rollback(task)
        _print({"task": _plain(result)}, f"{task}: {_shares(result.traffic, 64)}", as_json=json_)


@app.command()
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
            predictions = client.predict(inputs, on_error="return")
            table = Table("text", "answer", "score")
            for item, prediction in zip(text, predictions, strict=True):
                table.add_row(escape(item[:80]), *_answer(prediction))
            Console().print(table)
            failed = any(prediction.error is not None for prediction in predictions)
        if failed:
            raise typer.Exit(1)


app.command()(generating.generate)


def _shares(traffic: "Sequence[tuple[str, int]]", chars: int = 12) -> str:
    """The live versions by the start of their digests; if there are several, with the share of each."""
    if len(traffic) == 1:
        return traffic[0][0][:chars]
    total = sum(weight for _, weight in traffic)
    return ", ".join(f"{digest[:chars]} {weight / total:.1%}" for digest, weight in traffic)


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


def _plain(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


def _print(document: dict[str, Any], text: str | Table, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(document))
    else:
        Console().print(text)


def main() -> None:
    """Entry point of the `adamix` command."""
    # Before torch is imported: waiting threads would otherwise spin, on cores that others need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.argv[1:2] == ["serve"]:
        from adamix_server.telemetry import logs

        # Before there is anything to say: also a sentence on wrong usage waits for no reader.
        logs.divert("supervisor")
    for plugin in metadata.entry_points(group=PLUGIN_GROUP):
        plugin.load()(app)
    app()
