"""Every setting of the server, each default written once. Command-line flags read their defaults from here."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from adamix.errors import InvalidConfig

# Published limits of one call (docs/limits.md). They bound memory and time per request, so they are not settings.
MAX_INPUTS_PER_CALL = 64
MAX_STREAM_INPUTS = 256
MAX_STREAM_ID_BYTES = 64
MAX_TEXT_BYTES = 64 << 10
MAX_MESSAGE_BYTES = 4 << 20
MAX_CHUNK_BYTES = 1 << 20
MAX_METADATA_BYTES = 8 << 10
MAX_ADAPTER_BYTES = 256 << 20
DEFAULT_TIMEOUT_S = 60.0
MAX_TIMEOUT_S = 600.0
MAX_PAGE_SIZE = 1000
DEFAULT_TENANT = "default"

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of `adamix serve`. Raises InvalidConfig on a value that cannot work."""

    backbone: str
    listen: str = "127.0.0.1:50051"
    store: Path = Path("adamix-store")
    device: str = "auto"
    dtype: DtypeName = "auto"
    max_batch_tokens: int = 1024
    slots: int = 512
    arena_bytes: int = 512 << 20
    host_cache_bytes: int = 2 << 30
    max_queue_inputs: int = 4096
    max_queue_tokens: int = 262_144
    # Front-end processes, which share the port; one answers about 1,000 calls a second.
    front_ends: int = 1
    # The only directory of this machine that `RegisterAdapter` may read files from; none if not given.
    adapter_root: Path | None = None
    # Tokenizer threads in the front end, and threads of the engine's own operators (0: as many as there are cores).
    tokenizer_threads: int = 2
    engine_threads: int = 0
    metrics_port: int | None = None
    insecure: bool = False
    drain_delay_s: float = 5.0
    drain_grace_s: float = 60.0
    log_level: LogLevel = "info"

    def __post_init__(self) -> None:
        host, _ = split_address(self.listen)
        if not is_loopback(host) and not self.insecure:
            raise InvalidConfig(
                f"--listen {self.listen} is reachable from other machines and has neither TLS nor keys; "
                "listen on 127.0.0.1 or say --insecure",
                reason="INSECURE_ADDRESS",
            )
        bounds = {
            "max_batch_tokens": (16, 1 << 20),
            "slots": (1, 1 << 20),
            "arena_bytes": (1 << 20, 1 << 40),
            "host_cache_bytes": (0, 1 << 42),
            "max_queue_inputs": (1, 1 << 20),
            "max_queue_tokens": (16, 1 << 30),
            "front_ends": (1, 64),
            "tokenizer_threads": (1, 256),
            "engine_threads": (0, 1024),
            "drain_delay_s": (0, 3600),
            "drain_grace_s": (0, 3600),
        }
        for name, (low, high) in bounds.items():
            if not low <= getattr(self, name) <= high:
                raise InvalidConfig(f"{name} must be in {low}..{high}, not {getattr(self, name)}", field=name)
        for name, choices in (("dtype", get_args(DtypeName)), ("log_level", get_args(LogLevel))):
            if getattr(self, name) not in choices:
                raise InvalidConfig(
                    f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}", field=name
                )
        if self.adapter_root is not None and not self.adapter_root.is_dir():
            raise InvalidConfig(f"--adapter-root {self.adapter_root} is not a directory", field="adapter_root")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65_535:
            raise InvalidConfig(f"metrics_port must be in 0..65535, not {self.metrics_port}", field="metrics_port")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor tells an engine process."""

    engine_id: str
    generation: int
    address: str
    backbone: str
    tokenizer: str  # where to write the tokenizer.json that front ends use
    store: str
    device: str
    dtype: DtypeName
    max_batch_tokens: int
    slots: int
    arena_bytes: int
    host_cache_bytes: int
    max_queue_inputs: int
    max_queue_tokens: int
    front_ends: int  # among whom the queue's room is shared
    log_level: str


class FrontEndConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor tells a front-end process."""

    name: str = "frontend-0"  # in its log lines
    listen: str
    store: str
    tokenizer: str  # path of the exported tokenizer.json, truncation and padding stripped
    tokenizer_threads: int
    reflection: bool
    shares_port: bool  # with other front ends, by SO_REUSEPORT
    adapter_root: str | None
    log_level: str


def to_plain(config: EngineConfig | FrontEndConfig) -> dict[str, Any]:
    """As the payload of a `Start` frame."""
    result: dict[str, Any] = msgspec.to_builtins(config)
    return result


def split_address(address: str) -> tuple[str, int]:
    """`host:port` -> (host, port); `[::1]:50051` for IPv6. Raises InvalidConfig."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535 or not host:
        raise InvalidConfig(f"{address!r} is not HOST:PORT", field="listen")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
