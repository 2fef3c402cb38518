"""`adamix serve`: what its flags say as one `ServerConfig`, and the start of the supervisor."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from adamix.cli import checks
from adamix.cli.sources import settings
from adamix.cli.terminal import exit_codes, stderr
from adamix.errors import InvalidConfig
from adamix_server.access.quotas import parse_quotas
from adamix_server.cli.printing import show
from adamix_server.config import AccessSettings, EngineSettings, FrontEndSettings, ServerConfig, TlsSettings

if TYPE_CHECKING:
    from adamix_server.channel.engine_frames import Hello
    from adamix_server.supervisor.supervisor import Addresses


def serve(
    ctx: typer.Context,
    backbone: Annotated[str, typer.Option(help="A directory, a hub id, `minilm` or `smollm2`.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT to answer on; port 0 takes a free one.")] = ServerConfig.listen,
    http: Annotated[
        str | None,
        typer.Option(help="HOST:PORT to answer on over HTTP as well; port 0 takes a free one.  [default: none]"),
    ] = None,
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
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show each value and where it is from, and serve nothing.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="--print-config: as one JSON document.")] = False,
) -> None:
    """Serve adapters over gRPC, and over HTTP with --http, until SIGTERM or Ctrl-C. Logs are JSON lines on stderr."""
    with exit_codes():
        if print_config:
            _show_settings(ctx, as_json=json_)
        elif json_:
            raise InvalidConfig("--json is for --print-config: a server says what it does in its log", field="json")
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
            http=http,
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
        if print_config:
            return
        checks.names(backbone)
        from adamix_server.supervisor import supervisor
        from adamix_server.telemetry import logs

        logs.configure(config.log_level, process="supervisor")
        supervisor.serve(config, _announce)


def _show_settings(ctx: typer.Context, *, as_json: bool) -> None:
    """Each option's value, and who said so: before they are checked, for whoever looks for a mistake in them."""
    found = [setting for setting in settings(ctx) if setting.name != "json"]
    table = Table("option", "value", "from")
    for setting in found:
        value = "" if setting.value is None else json.dumps(setting.value, ensure_ascii=False).strip('"')
        table.add_row(setting.name, escape(value), escape(f"{setting.source} {setting.place}".strip()))
    rows = [{"option": each.name, "value": each.value, "source": each.source, "place": each.place} for each in found]
    show({"settings": rows}, table, as_json=as_json)


def _announce(addresses: "Addresses", hello: "Hello") -> None:
    import logging

    address = addresses.grpc
    fields = {"address": address, "backbone": hello.spec.label, "device": hello.device, "dtype": hello.dtype}
    if addresses.http:
        fields["http"] = addresses.http
    logging.getLogger(__name__).log(logging.INFO, "serving", extra=fields)
    if sys.stderr.isatty():
        stderr.print(f"[green]serving {hello.spec.label} on {address}[/] ({hello.device}, {hello.dtype}); Ctrl-C ends")
