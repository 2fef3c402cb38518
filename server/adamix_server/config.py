"""Every setting of the server, written once: its default, its bounds and what it is.

Command-line flags read their defaults from here; the supervisor hands the parts to its children as they are.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin, get_type_hints

from adamix.errors import InvalidConfig
from adamix_client.addresses import is_loopback, split_address

DEFAULT_TENANT = "default"

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
LogLevel = Literal["debug", "info", "warning", "error"]
# In what the backbone's weights are kept. What is computed from them stays in `dtype`.
QuantizeName = Literal["none", "bf16"]
# How a server learns who calls: it asks nobody; or by API keys, by tokens of an issuer, by certificates.
AuthKind = Literal["none", "keys", "jwt", "mtls"]


@dataclass(frozen=True)
class Within:
    """The bounds of a number, both included; noted at the setting and checked when its value is made."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What an engine computes with. Raises InvalidConfig on a value that cannot work.

    Attributes:
        backbone: a directory, a hub id, or `minilm`.
        device: `auto`, `cpu` or `cuda[:N]`.
        dtype: `auto` is fp32 on CPUs and bf16 on CUDA devices.
        max_batch_tokens: token budget of a batch; a longer text runs alone.
        slots: most adapters on the device at once.
        arena_bytes: device memory for adapters.
        host_cache_bytes: host memory for adapters.
        max_queue_inputs: inputs that may wait, and `max_queue_tokens` their tokens; shared out to the front ends.
        threads: of its operators; 0 is as many as there are cores.
        stall_s: an engine that comes to the end of no step for so long is taken to be stuck, and replaced after three
            times that. Longer than any step takes.
        deterministic: a request's answer has the same bits whatever shares its batch; fp32 on CPUs alone, and slower.
        kv_bytes: memory of a decoder for keys and values; 0 is a quarter of the free host memory up to 4 GiB, or 0.8 of
            the free device memory.
        max_running: texts that a decoder generates at once, half of `max_batch_tokens` at most; 0 is 64 on CPUs and 256
            on other devices.
        max_chunk_tokens: of a prompt that a decoder computes in one step beside running texts; 0 is 64 on CPUs and
            2,048 on other devices.
        quantize: in what the backbone's weights are kept.
    """

    backbone: str
    device: str = "auto"
    dtype: DtypeName = "auto"
    max_batch_tokens: Annotated[int, Within(16, 1 << 20)] = 1024
    slots: Annotated[int, Within(1, 1 << 20)] = 512
    arena_bytes: Annotated[int, Within(1 << 20, 1 << 40)] = 512 << 20
    host_cache_bytes: Annotated[int, Within(0, 1 << 42)] = 2 << 30
    max_queue_inputs: Annotated[int, Within(1, 1 << 20)] = 4096
    max_queue_tokens: Annotated[int, Within(16, 1 << 30)] = 262_144
    threads: Annotated[int, Within(0, 1024)] = 0
    stall_s: Annotated[float, Within(1, 3600)] = 10.0
    deterministic: bool = False
    kv_bytes: Annotated[int, Within(0, 1 << 42)] = 0
    max_running: Annotated[int, Within(0, 4096)] = 0
    max_chunk_tokens: Annotated[int, Within(0, 1 << 16)] = 0
    quantize: QuantizeName = "none"

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class TlsSettings:
    """Files in PEM, read again when they change.

    Attributes:
        cert: the server's certificate, then those up to its CA; `key` is its private key, without a password.
        client_ca: every caller must have a certificate that is signed by one of these; None asks for none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    @classmethod
    def of(cls, cert: Path | None, key: Path | None, client_ca: Path | None) -> "TlsSettings | None":
        """What these flags ask for together. Raises InvalidConfig."""
        if cert is not None and key is not None:
            return cls(cert=cert, key=key, client_ca=client_ca)
        if cert is not None or key is not None:
            raise InvalidConfig("--tls-cert and --tls-key are given together", field="tls_cert")
        if client_ca is not None:
            raise InvalidConfig("--client-ca needs --tls-cert and --tls-key as well", field="client_ca")
        return None


@dataclass(frozen=True, kw_only=True)
class AccessSettings:
    """Who is let in. Raises InvalidConfig on values that do not go together.

    Attributes:
        auth: what callers show, each kind once; `none` stands alone, and lets everyone do everything.
        jwt_jwks: file with the public keys of the issuer of tokens, read again when it changes.
        jwt_issuer, jwt_audience: what a token's `iss` is, and its `aud` has.
        jwt_tenant_claim: names the claim that is the tenant's id.
    """

    auth: tuple[AuthKind, ...] = ("none",)
    jwt_jwks: Path | None = None
    jwt_issuer: str = ""
    jwt_audience: str = ""
    jwt_tenant_claim: str = "tenant"

    def __post_init__(self) -> None:
        kinds = get_args(AuthKind)
        if unknown := [kind for kind in self.auth if kind not in kinds]:
            raise InvalidConfig(f"--auth: {unknown[0]!r} is none of {', '.join(kinds)}", field="auth")
        if not self.auth or len(set(self.auth)) < len(self.auth) or ("none" in self.auth and len(self.auth) > 1):
            raise InvalidConfig(
                f"--auth: say none alone, or some of {', '.join(kinds[1:])}, each once, with commas", field="auth"
            )
        given = {
            "--jwt-jwks": self.jwt_jwks is not None,
            "--jwt-issuer": bool(self.jwt_issuer),
            "--jwt-audience": bool(self.jwt_audience),
        }
        if "jwt" in self.auth and not all(given.values()):
            missing = next(flag for flag, is_given in given.items() if not is_given)
            raise InvalidConfig(f"--auth jwt needs {missing} as well", field=_field(missing))
        if "jwt" not in self.auth and any(given.values()):
            flag = next(flag for flag, is_given in given.items() if is_given)
            raise InvalidConfig(f"{flag} is of use only with jwt in --auth", field=_field(flag))
        if not self.jwt_tenant_claim:
            raise InvalidConfig("--jwt-tenant-claim must name a claim", field="jwt_tenant_claim")

    @property
    def asks_nobody(self) -> bool:
        return self.auth == ("none",)


@dataclass(frozen=True, kw_only=True)
class FrontEndSettings:
    """How a front end answers. Raises InvalidConfig on a value that cannot work.

    Attributes:
        adapter_root: the only directory of this machine that `RegisterAdapter` may read files from; none if None.
        tokenizer_threads: for texts too long to be encoded in passing.
        max_upload_s: for receiving all of an adapter file.
        trusted_proxies: networks that many callers come from, such as those of a load balancer: their addresses have no
            share of their own.
        access: who is let in.
        tls: None answers unencrypted.
        default_quotas: of tenants that set none of their own, by name (`access.quotas`, which checks them).
    """

    adapter_root: Path | None = None
    tokenizer_threads: Annotated[int, Within(1, 256)] = 2
    max_upload_s: Annotated[float, Within(1, 600)] = 600.0
    trusted_proxies: tuple[str, ...] = ()
    access: AccessSettings = field(default_factory=AccessSettings)
    tls: TlsSettings | None = None
    default_quotas: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check(self)
        has_client_ca = self.tls is not None and self.tls.client_ca is not None
        if "mtls" in self.access.auth and not has_client_ca:
            raise InvalidConfig("--auth mtls needs --tls-cert, --tls-key and --client-ca", field="client_ca")
        if has_client_ca and "mtls" not in self.access.auth:
            raise InvalidConfig(
                "--client-ca asks every caller for a certificate; say so with mtls in --auth", field="client_ca"
            )
        for network in self.trusted_proxies:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise InvalidConfig(f"trusted_proxies: {error}", field="trusted_proxies") from None


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What `adamix serve` runs: the settings of its processes, and those that are the supervisor's own.

    Raises InvalidConfig on a value that cannot work.

    Attributes:
        listen: `host:port` to answer on; port 0 takes a free one.
        store: directory of the adapters and the catalog.
        http: `host:port` to answer on over HTTP as well; port 0 takes a free one, None does not.
        front_ends: front-end processes, which share the ports; one answers about 1,000 calls a second.
        metrics_listen: `host:port` of probes and metrics; port 0 takes a free one, None has none.
        metrics_port: the same on 127.0.0.1, by its port alone.
        insecure: allow an address that other machines can reach, to callers that nobody asks who they are, or without
            TLS.
        drain_delay_s: between reporting unhealthy and refusing calls.
        drain_grace_s: what running calls are given to end.
        log_level: of every process.
        audit_days: how long entries of the audit are kept.
        accept_catalog: go on with a catalog that is missing, older or another store's (`catalog/lineage.py`).
    """

    engine: EngineSettings
    front_end: FrontEndSettings = field(default_factory=FrontEndSettings)
    listen: str = "127.0.0.1:50051"
    store: Path = Path("adamix-store")
    http: str | None = None
    front_ends: Annotated[int, Within(1, 64)] = 1
    metrics_listen: str | None = None
    metrics_port: Annotated[int | None, Within(0, 65_535)] = None
    insecure: bool = False
    drain_delay_s: Annotated[float, Within(0, 3600)] = 5.0
    drain_grace_s: Annotated[float, Within(0, 3600)] = 60.0
    log_level: LogLevel = "info"
    audit_days: Annotated[int, Within(1, 36_500)] = 90
    accept_catalog: bool = False

    def __post_init__(self) -> None:
        front_end = self.front_end
        for flag, address in {"--listen": self.listen, "--http": self.http}.items():
            if address is None:
                continue
            if front_end.access.asks_nobody:
                _check_reachable(
                    flag,
                    address,
                    "lets everybody there do everything; say --auth keys with --tls-cert and --tls-key,",
                    insecure=self.insecure,
                )
            elif front_end.tls is None:
                _check_reachable(
                    flag,
                    address,
                    "would let keys and texts be read on the way; give --tls-cert and --tls-key,",
                    insecure=self.insecure,
                )
        if self.http is not None:
            if front_end.access.auth == ("mtls",):
                raise InvalidConfig(
                    "--http needs keys or jwt in --auth as well: over HTTP a certificate does not say who calls",
                    field="http",
                )
            split_address(self.http, "http")
        if self.metrics_listen is not None:
            if self.metrics_port is not None:
                raise InvalidConfig(
                    f"--metrics-listen {self.metrics_listen} and --metrics-port {self.metrics_port} set the same "
                    "address; say one of them",
                    field="metrics_port",
                )
            # It tells the names of tenants and tasks to whoever asks.
            _check_reachable("--metrics-listen", self.metrics_listen, "asks nobody for a key;", insecure=self.insecure)
        _check(self)
        # Asked here alone: a front end that is replaced goes on without a directory that has gone meanwhile.
        root = self.front_end.adapter_root
        if root is not None and not root.is_dir():
            raise InvalidConfig(f"--adapter-root {root} is not a directory", field="adapter_root")

    @property
    def metrics_address(self) -> str | None:
        """Where probes and metrics are answered, if anywhere."""
        return self.metrics_listen if self.metrics_port is None else f"127.0.0.1:{self.metrics_port}"


def _check(settings: object) -> None:
    """Raise InvalidConfig unless every setting is within its bounds and one of its choices."""
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        for bounds in getattr(hint, "__metadata__", ()):
            # Written so that a NaN is refused.
            if value is not None and not bounds.low <= value <= bounds.high:
                raise InvalidConfig(f"{name} must be in {bounds.low}..{bounds.high}, not {value}", field=name)
        if get_origin(hint) is Literal and value not in (choices := get_args(hint)):
            raise InvalidConfig(f"{name} must be one of {', '.join(choices)}, not {value!r}", field=name)


def _check_reachable(flag: str, address: str, want: str, *, insecure: bool) -> None:
    """Raise InvalidConfig if other machines can reach an address and nobody said that they may."""
    host, _ = split_address(address, _field(flag))
    if not is_loopback(host) and not insecure:
        raise InvalidConfig(
            f"{flag} {address} is reachable from other machines and {want} listen on 127.0.0.1 or say --insecure",
            reason="INSECURE_ADDRESS",
            field=_field(flag),
        )


def _field(flag: str) -> str:
    """The setting that a flag is."""
    return flag.removeprefix("--").replace("-", "_")
