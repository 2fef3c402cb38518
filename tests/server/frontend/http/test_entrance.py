"""HTTP with TLS that asks who calls: the credentials of gRPC, by the headers that clients of HTTP send."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from adamix.files.manifest import BackboneSpec
from adamix_server.access import api_keys
from adamix_server.access.rights import ROLES
from adamix_server.catalog.store import Catalog
from adamix_server.config import AccessSettings, FrontEndSettings
from adamix_server.frontend.http import certificate
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.credentials import Authority, Issued, write_pair
from adamix_testing.harness import Harness, StartServing

BODY = {"inputs": [{"task": "sst2", "text": "w1"}]}
MakeKey = Callable[..., str]


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def make_key(store: Path, spec: BackboneSpec, seed: Seed, make_adapter: MakeAdapter) -> MakeKey:
    """Puts a key of tenant acme, which has a task, into the catalog."""
    seed("sst2", make_adapter(), tenant="acme")

    def make(role: str = "owner", **more: Any) -> str:
        text, key = api_keys.make()
        catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)
        catalog.keys.create("acme", key, rights=ROLES[role], **more)
        catalog.close()
        return text

    return make


def settings_of(directory: Path, authority: Authority, *auth: Any, **more: Any) -> FrontEndSettings:
    client_ca = authority.cert if "mtls" in auth else None
    tls = write_pair(directory, authority.issue(), client_ca)
    return FrontEndSettings(access=AccessSettings(auth=auth), tls=tls, **more)


def client_of(harness: Harness, ca: bytes, directory: Path, shown: Issued | None = None) -> httpx2.AsyncClient:
    """A client with connections of its own, that shows a certificate if it has one."""
    context = ssl.create_default_context(cadata=ca.decode())
    if shown is not None:
        (directory / "shown.pem").write_bytes(shown.cert + shown.key)
        context.load_cert_chain(directory / "shown.pem")
    return httpx2.AsyncClient(base_url=f"https://{harness.http}", verify=context)


async def can_connect(harness: Harness, ca: bytes, directory: Path, shown: Issued | None = None) -> bool:
    async with client_of(harness, ca, directory, shown) as client:
        try:
            await client.get("/livez")
        except (httpx2.ConnectError, httpx2.ReadError, httpx2.RemoteProtocolError):
            return False
        return True


async def until_it_can(harness: Harness, ca: bytes, directory: Path, shown: Issued | None = None) -> None:
    while not await can_connect(harness, ca, directory, shown):  # noqa: ASYNC110 - files have no event
        await asyncio.sleep(0.02)


async def test_keys_over_tls(
    start_serving: StartServing, authority: Authority, tmp_path: Path, make_key: MakeKey
) -> None:
    owner, caller = make_key(), make_key("caller")
    harness = await start_serving(settings=settings_of(tmp_path, authority, "keys"), http="127.0.0.1:0")
    async with client_of(harness, authority.cert, tmp_path) as client:
        for headers in ({"authorization": f"Bearer {owner}"}, {"api-key": owner}, {"x-api-key": caller}):
            answer = await client.post("/v1/predict", json=BODY, headers=headers)
            assert answer.status_code == 200, headers.keys()
        said = set()
        refused: tuple[dict[str, Any], ...] = (
            {},
            {"authorization": f"Bearer {owner[:-1]}_"},
            {"authorization": f"Basic {owner}"},
            {"authorization": owner},
            {"authorization": f"Bearer {owner}", "api-key": owner},
            {"api-key": "é".encode()},
        )
        for headers in refused:
            # Also for what is no JSON: nobody is told anything of it who is not known.
            answer = await client.post("/v1/predict", content=b"{", headers=headers)
            error = answer.json()["error"]
            assert (answer.status_code, error["reason"]) == (401, "KEY_INVALID"), headers
            assert answer.headers["www-authenticate"] == "Bearer"
            said.add(error["message"])
        assert len(said) == 1
        # Probes and documents need none.
        for path in ("/livez", "/readyz", "/openapi.json", "/docs"):
            assert (await client.get(path)).status_code == 200
    assert not await can_connect(harness, Authority("other").cert, tmp_path)
    samples = harness.front_end._recorder.drain()
    failures = {s.labels[0]: s.values[0] for s in samples if s.name == "adamix_auth_failures_total"}
    assert failures == {"missing": 1, "mistyped": 1, "malformed": 4}
    written = [entry for entry in harness.front_end._witness.drain() if entry.code == "UNAUTHENTICATED"]
    assert {entry.method for entry in written} == {"adamix.v1.InferenceService/Predict"}


async def test_a_key_of_some_networks_behind_a_trusted_proxy(
    start_serving: StartServing, authority: Authority, tmp_path: Path, make_key: MakeKey
) -> None:
    key = make_key(networks=("203.0.113.0/24",))
    settings = settings_of(tmp_path, authority, "keys", trusted_proxies=("127.0.0.0/8",))
    harness = await start_serving(settings=settings, http="127.0.0.1:0")
    async with client_of(harness, authority.cert, tmp_path) as client:

        async def status(forwarded_for: str) -> int:
            headers = {"authorization": f"Bearer {key}", "x-forwarded-for": forwarded_for}
            return (await client.post("/v1/predict", json=BODY, headers=headers)).status_code

        assert await status("203.0.113.7") == 200
        assert await status("203.0.113.7, 127.0.0.2") == 200
        # What stands before the last that is no proxy, its caller may have written.
        assert await status("203.0.113.7, 198.51.100.1") == 401


async def test_where_callers_show_certificates_those_of_http_do_as_well(
    start_serving: StartServing,
    authority: Authority,
    tmp_path: Path,
    make_key: MakeKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(certificate, "_LOOK_S", 0.05)
    key, newer = make_key("caller"), Authority("newer")
    old, new = authority.issue("svc"), newer.issue("svc")
    harness = await start_serving(settings=settings_of(tmp_path, authority, "keys", "mtls"), http="127.0.0.1:0")
    async with client_of(harness, authority.cert, tmp_path, old) as client:
        headers = {"authorization": f"Bearer {key}"}
        assert (await client.post("/v1/predict", json=BODY, headers=headers)).status_code == 200
        # It opens the connection and nothing else.
        assert (await client.post("/v1/predict", json=BODY)).status_code == 401
    assert not await can_connect(harness, authority.cert, tmp_path)
    assert not await can_connect(harness, authority.cert, tmp_path, new)
    # Once its CA is exchanged, the old one opens nothing.
    (tmp_path / "client_ca.pem").write_bytes(newer.cert)
    await until_it_can(harness, authority.cert, tmp_path, new)
    assert not await can_connect(harness, authority.cert, tmp_path, old)


async def test_a_certificate_is_exchanged_while_connections_run(
    start_serving: StartServing,
    authority: Authority,
    tmp_path: Path,
    make_key: MakeKey,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(certificate, "_LOOK_S", 0.05)
    headers = {"authorization": f"Bearer {make_key()}"}
    harness = await start_serving(settings=settings_of(tmp_path, authority, "keys"), http="127.0.0.1:0")
    newer = Authority("newer")
    issued = newer.issue()
    async with client_of(harness, authority.cert, tmp_path) as running:
        assert (await running.post("/v1/predict", json=BODY, headers=headers)).status_code == 200
        (tmp_path / "cert.pem").write_bytes(issued.cert)
        await harness.until(lambda: any("certificate of HTTP stays" in message for message in caplog.messages))
        assert await can_connect(harness, authority.cert, tmp_path), "half of the new pair"
        (tmp_path / "key.pem").write_bytes(issued.key)
        await until_it_can(harness, newer.cert, tmp_path)
        assert not await can_connect(harness, authority.cert, tmp_path)
        assert (await running.post("/v1/predict", json=BODY, headers=headers)).status_code == 200, "it goes on"
