"""Settings on their way: what is refused when they are made, and what a child is told of them."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from adamix.errors import InvalidConfig
from adamix_server.channel.codec import to_child
from adamix_server.channel.supervisor_frames import StartEngine
from adamix_server.config import EngineSettings, FrontEndSettings, ServerConfig
from adamix_testing.harness import start_front_end


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_batch_tokens", 15),
        ("slots", 0),
        ("slots", (1 << 20) + 1),
        ("arena_bytes", 0),
        ("host_cache_bytes", -1),
        ("max_queue_inputs", 0),
        ("max_queue_tokens", 15),
        ("threads", 1025),
        ("stall_s", 0.99),
        ("stall_s", 3600.5),
        ("stall_s", float("nan")),
        ("dtype", "float64"),
    ],
)
def test_an_engine_is_refused_what_cannot_work(field: str, value: Any) -> None:
    with pytest.raises(InvalidConfig, match=f"{field} must be ") as said:
        EngineSettings(backbone="x", **{field: value})
    assert said.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("listen", "nowhere"),
        ("listen", "0.0.0.0:1"),
        ("front_ends", 65),
        ("metrics_port", 65_536),
        ("metrics_listen", "9090"),
        ("metrics_listen", "0.0.0.0:9090"),
        ("drain_delay_s", -0.5),
        ("drain_grace_s", float("nan")),
        ("log_level", "loud"),
    ],
)
def test_a_server_is_refused_what_cannot_work(field: str, value: Any) -> None:
    engine = EngineSettings(backbone="x")
    with pytest.raises(InvalidConfig):
        ServerConfig(engine=engine, **{field: value})
    assert ServerConfig(engine=engine, listen="0.0.0.0:1", insecure=True).listen == "0.0.0.0:1"


def test_probes_are_answered_where_they_are_wanted() -> None:
    engine = EngineSettings(backbone="x")
    assert ServerConfig(engine=engine).metrics_address is None
    assert ServerConfig(engine=engine, metrics_port=9090).metrics_address == "127.0.0.1:9090"
    assert ServerConfig(engine=engine, metrics_listen="[::1]:0").metrics_address == "[::1]:0"
    with pytest.raises(
        InvalidConfig, match=r"--metrics-listen 127\.0\.0\.1:1 and --metrics-port 2 set the same address"
    ):
        ServerConfig(engine=engine, metrics_listen="127.0.0.1:1", metrics_port=2)


def test_probes_for_other_machines_are_asked_for_by_name() -> None:
    engine = EngineSettings(backbone="x")
    with pytest.raises(InvalidConfig, match=r"--metrics-listen 0\.0\.0\.0:1 is reachable from other machines") as said:
        ServerConfig(engine=engine, metrics_listen="0.0.0.0:1")
    assert (said.value.reason, said.value.field) == ("INSECURE_ADDRESS", "metrics_listen")
    assert ServerConfig(engine=engine, metrics_listen="0.0.0.0:1", insecure=True).metrics_address == "0.0.0.0:1"


def test_a_front_end_is_refused_what_cannot_work() -> None:
    with pytest.raises(InvalidConfig, match=r"tokenizer_threads must be in 1\.\.256, not 0"):
        FrontEndSettings(tokenizer_threads=0)


def test_a_trusted_proxy_is_a_network() -> None:
    assert FrontEndSettings(trusted_proxies=("10.0.0.0/8", "2001:db8::/32")).trusted_proxies
    with pytest.raises(InvalidConfig, match="trusted_proxies"):
        FrontEndSettings(trusted_proxies=("10.0.0.7/8",))


def test_settings_reach_a_child_as_they_were_given(tmp_path: Path) -> None:
    engine = StartEngine(
        settings=EngineSettings(backbone="x", device="cpu", dtype="bfloat16", slots=7, threads=3),
        engine_id="0",
        generation=2,
        address="ipc://socket",
        front_ends=2,
        store=tmp_path,
        tokenizer=tmp_path / "tokenizer.json",
        log_level="debug",
    )
    # The directory may have gone since the server was started: a front end that is replaced goes on without it.
    settings = FrontEndSettings(
        adapter_root=tmp_path / "gone",
        tokenizer_threads=5,
        trusted_proxies=("10.0.0.0/8",),
        default_quotas={"max_tasks": 100},
    )
    front_end = msgspec.structs.replace(start_front_end(tmp_path, tmp_path / "tokenizer.json"), settings=settings)
    assert to_child.decode(to_child.encode(engine)) == engine
    assert to_child.decode(to_child.encode(front_end)) == front_end
