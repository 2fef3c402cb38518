"""Settings on their way: what is refused when they are made, and what a child is told of them."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from adamix.errors import InvalidConfig
from adamix_server.channel.codec import to_child
from adamix_server.channel.supervisor_frames import StartEngine
from adamix_server.config import AccessSettings, EngineSettings, FrontEndSettings, ServerConfig, TlsSettings
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
        ("http", "8080"),
        ("http", "0.0.0.0:1"),
        ("front_ends", 65),
        ("audit_days", 0),
        ("audit_days", 36_501),
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


def test_http_is_answered_where_grpc_would_be() -> None:
    engine = EngineSettings(backbone="x")
    tls = TlsSettings(cert=Path("c"), key=Path("k"))
    keys = FrontEndSettings(access=AccessSettings(auth=("keys",)), tls=tls)
    assert ServerConfig(engine=engine).http is None
    assert ServerConfig(engine=engine, http="0.0.0.0:1", front_end=keys).http == "0.0.0.0:1"
    with pytest.raises(InvalidConfig, match=r"--http 0\.0\.0\.0:1 is reachable from other machines") as said:
        ServerConfig(engine=engine, http="0.0.0.0:1")
    assert (said.value.reason, said.value.field) == ("INSECURE_ADDRESS", "http")
    assert ServerConfig(engine=engine, http="0.0.0.0:1", insecure=True).http == "0.0.0.0:1"


def test_http_needs_more_than_certificates() -> None:
    tls = TlsSettings(cert=Path("c"), key=Path("k"), client_ca=Path("ca"))
    engine = EngineSettings(backbone="x")
    certificates = FrontEndSettings(access=AccessSettings(auth=("mtls",)), tls=tls)
    assert ServerConfig(engine=engine, front_end=certificates).http is None
    with pytest.raises(InvalidConfig, match=r"--http needs keys or jwt in --auth as well") as said:
        ServerConfig(engine=engine, front_end=certificates, http="127.0.0.1:1")
    assert said.value.field == "http"
    both = FrontEndSettings(access=AccessSettings(auth=("keys", "mtls")), tls=tls)
    assert ServerConfig(engine=engine, front_end=both, http="127.0.0.1:1").http


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


@pytest.mark.parametrize(
    ("auth", "more", "words"),
    [
        ((), {}, "say none alone"),
        (("none", "keys"), {}, "say none alone"),
        (("keys", "keys"), {}, "each once"),
        (("password",), {}, "'password' is none of none, keys, jwt, mtls"),
        (("jwt",), {}, "--auth jwt needs --jwt-jwks"),
        (("jwt",), {"jwt_jwks": Path("j"), "jwt_issuer": "i"}, "--auth jwt needs --jwt-audience"),
        (("keys",), {"jwt_issuer": "i"}, "--jwt-issuer is of use only with jwt"),
        (("keys",), {"jwt_tenant_claim": ""}, "must name a claim"),
    ],
)
def test_ways_to_be_known_go_together_or_not(auth: tuple[Any, ...], more: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        AccessSettings(auth=auth, **more)


def test_certificates_are_asked_for_by_name() -> None:
    cert, key, ca = Path("cert"), Path("key"), Path("ca")
    assert TlsSettings.of(None, None, None) is None
    assert TlsSettings.of(cert, key, ca) == TlsSettings(cert=cert, key=key, client_ca=ca)
    with pytest.raises(InvalidConfig, match="given together"):
        TlsSettings.of(cert, None, None)
    with pytest.raises(InvalidConfig, match="--client-ca needs --tls-cert"):
        TlsSettings.of(None, None, ca)
    with pytest.raises(InvalidConfig, match="--auth mtls needs --tls-cert, --tls-key and --client-ca"):
        FrontEndSettings(access=AccessSettings(auth=("mtls",)), tls=TlsSettings.of(cert, key, None))
    with pytest.raises(InvalidConfig, match="say so with mtls in --auth"):
        FrontEndSettings(access=AccessSettings(auth=("keys",)), tls=TlsSettings.of(cert, key, ca))


def test_an_address_that_others_reach_needs_keys_and_tls_or_a_word() -> None:
    engine, tls = EngineSettings(backbone="x"), TlsSettings(cert=Path("c"), key=Path("k"))
    keys = AccessSettings(auth=("keys",))

    def serve(listen: str, front_end: FrontEndSettings, *, insecure: bool = False) -> ServerConfig:
        return ServerConfig(engine=engine, listen=listen, front_end=front_end, insecure=insecure)

    with pytest.raises(InvalidConfig, match="lets everybody there do everything; say --auth keys with --tls-cert"):
        serve("0.0.0.0:1", FrontEndSettings(tls=tls))
    with pytest.raises(InvalidConfig, match="would let keys and texts be read on the way; give --tls-cert") as said:
        serve("0.0.0.0:1", FrontEndSettings(access=keys))
    assert (said.value.reason, said.value.field) == ("INSECURE_ADDRESS", "listen")
    assert serve("0.0.0.0:1", FrontEndSettings(access=keys, tls=tls))
    for front_end in (FrontEndSettings(), FrontEndSettings(access=keys), FrontEndSettings(tls=tls)):
        assert serve("127.0.0.1:1", front_end)
        assert serve("0.0.0.0:1", front_end, insecure=True)


def test_a_front_end_is_told_who_is_let_in() -> None:
    start = start_front_end(Path("store"), Path("tokenizer"))
    access = AccessSettings(auth=("keys", "mtls"))
    tls = TlsSettings(cert=Path("c"), key=Path("k"), client_ca=Path("ca"))
    start = msgspec.structs.replace(start, settings=FrontEndSettings(access=access, tls=tls))
    assert to_child.decode(to_child.encode(start)) == start
