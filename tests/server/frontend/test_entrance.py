"""A front end with TLS that asks who calls: over real connections, with real keys, tokens and certificates."""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adamix.errors import AdamixError, Code, PermissionDenied, Unauthenticated, Unavailable
from adamix.files.manifest import BackboneSpec
from adamix_client import Client
from adamix_client.status import from_rpc_error
from adamix_protos.v1 import adapters_pb2, adapters_pb2_grpc, inference_pb2, inference_pb2_grpc
from adamix_server.access import api_keys
from adamix_server.access.rights import ROLES
from adamix_server.agreement import Party
from adamix_server.catalog.access import KeyRow
from adamix_server.catalog.store import Catalog
from adamix_server.channel.supervisor_frames import Agreed, Refresh, Seen
from adamix_server.config import AccessSettings, FrontEndSettings
from adamix_server.frontend import catalog_view
from adamix_server.frontend.availability import Availability
from adamix_server.frontend.catalog_view import CatalogView
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed
from adamix_testing.credentials import AUDIENCE, ISSUER, Authority, Issued, Issuer, bearer, write_pair
from adamix_testing.harness import Harness, StartServing

# Until a stream has ended with its credential.
SOON_S = 1.0


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture
def make_key(store: Path, spec: BackboneSpec, seed: Seed, make_adapter: MakeAdapter) -> Callable[..., tuple[str, str]]:
    """Puts a key of tenant acme, which has a task, into the catalog; the key and its id."""
    seed("sst2", make_adapter(), tenant="acme")

    def make(role: str = "owner", **more: Any) -> tuple[str, str]:
        text, key = api_keys.make()
        catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)
        catalog.keys.create("acme", key, rights=ROLES[role], **more)
        catalog.close()
        return text, key.id

    return make


def settings_of(directory: Path, authority: Authority, *auth: Any, **access: Any) -> FrontEndSettings:
    client_ca = authority.cert if "mtls" in auth else None
    tls = write_pair(directory, authority.issue(), client_ca)
    return FrontEndSettings(access=AccessSettings(auth=auth, **access), tls=tls)


async def using(harness: Harness, work: Callable[[Client], Any], **credentials: Any) -> Any:
    """What `work` returns, or the AdamixError that it raises, of a client with these credentials."""

    def with_client() -> Any:
        with Client(harness.address, timeout_s=10, retries=None, **credentials) as client:
            try:
                return work(client)
            except AdamixError as error:
                return error

    return await asyncio.to_thread(with_client)


def predict(client: Client) -> Any:
    return client.predict(texts=["w1"], task="sst2")


async def revoke(harness: Harness, key_id: str) -> None:
    """As another front end does it: done when this one says that it sees it."""

    def change() -> int:
        catalog = Catalog(harness.store, backbone_fingerprint=harness.engine.spec.fingerprint)
        catalog.keys.revoke(key_id, tenant="acme")
        revision = catalog.snapshot().revision
        catalog.close()
        return revision

    revision = await asyncio.to_thread(change)
    harness.supervisor.tell(Refresh(revision=revision))
    while (await harness.supervisor.expect(Seen)).revision < revision:
        pass


async def test_keys_over_tls(
    start_serving: StartServing, authority: Authority, tmp_path: Path, make_key: Callable[..., tuple[str, str]]
) -> None:
    text, key_id = make_key()
    caller, _ = make_key("caller")
    harness = await start_serving(settings=settings_of(tmp_path, authority, "keys"))
    assert len((await using(harness, predict, ca=authority.cert, api_key=text)).predictions) == 1
    assert [task.task for task in await using(harness, Client.tasks, ca=authority.cert, api_key=text)] == ["sst2"]
    said = await using(harness, predict, ca=authority.cert)
    assert isinstance(said, Unauthenticated)
    assert said.reason == "KEY_INVALID"
    wrong = await using(harness, predict, ca=authority.cert, api_key=text[:-1] + "_")
    assert (type(wrong), wrong.message) == (Unauthenticated, said.message)
    denied = await using(harness, Client.tasks, ca=authority.cert, api_key=caller)
    assert isinstance(denied, PermissionDenied)
    assert denied.reason == "RIGHT_MISSING"
    # Probes need no credential.
    assert await using(harness, lambda client: client.wait_until_serving(5), ca=authority.cert) is None
    assert isinstance(await using(harness, predict, ca=Authority("other").cert, api_key=text), Unavailable)
    assert isinstance(await using(harness, predict), Unavailable), "without TLS"
    samples = harness.front_end._recorder.drain()
    failures = {s.labels[0]: s.values[0] for s in samples if s.name == "adamix_auth_failures_total"}
    assert failures == {"missing": 1, "mistyped": 1}
    assert key_id not in said.message


async def test_no_success_after_a_key_was_revoked(
    start_serving: StartServing, authority: Authority, tmp_path: Path, make_key: Callable[..., tuple[str, str]]
) -> None:
    text, key_id = make_key()
    harness = await start_serving(settings=settings_of(tmp_path, authority, "keys"))
    revoked_at: list[float] = []
    outcomes: list[tuple[float, bool]] = []

    def loop(client: Client) -> None:
        while not revoked_at or time.monotonic() < revoked_at[0] + 0.1:
            began = time.monotonic()
            try:
                predict(client)
            except Unauthenticated:
                outcomes.append((began, False))
            else:
                outcomes.append((began, True))

    running = asyncio.create_task(using(harness, loop, ca=authority.cert, api_key=text))
    await harness.until(lambda: len(outcomes) > 5)
    await revoke(harness, key_id)
    revoked_at.append(time.monotonic())
    assert await running is None
    assert any(succeeded for _, succeeded in outcomes)
    late = [succeeded for began, succeeded in outcomes if began >= revoked_at[0]]
    assert late
    assert not any(late)


async def test_a_call_held_back_until_its_key_was_revoked_is_refused(
    start_serving: StartServing, authority: Authority, tmp_path: Path, make_key: Callable[..., tuple[str, str]]
) -> None:
    (text, key_id), (other, _) = make_key(), make_key()
    harness = await start_serving(settings=settings_of(tmp_path, authority, "keys"))
    raw = inference_pb2.PredictRequest(inputs=[{"task": "sst2", "text": "w1"}]).SerializeToString()
    async with grpc.aio.secure_channel(harness.address, grpc.ssl_channel_credentials(authority.cert)) as channel:
        predict_slowly = channel.stream_unary("/adamix.v1.InferenceService/Predict")
        held = [predict_slowly(metadata=(bearer(shown),)) for shown in (text, other)]
        # A call that came later was answered: these have come.
        probe = adapters_pb2_grpc.AdapterServiceStub(channel)
        await probe.ListTasks(adapters_pb2.ListTasksRequest(), metadata=(bearer(other),))
        await revoke(harness, key_id)
        for call in held:
            await call.write(raw)
            await call.done_writing()
        assert (await end_of(held[0]))[:2] == (Code.UNAUTHENTICATED, "KEY_INVALID")
        assert await held[1], "the other one's key is as good as before"


def open_streams(channel: grpc.aio.Channel, credential: str) -> list[Any]:
    """One of each kind, under way."""
    metadata = (bearer(credential),)
    predictions = inference_pb2_grpc.InferenceServiceStub(channel).PredictStream(metadata=metadata)
    watch = adapters_pb2_grpc.AdapterServiceStub(channel).WatchTasks(
        adapters_pb2.WatchTasksRequest(), metadata=metadata
    )
    upload = adapters_pb2_grpc.AdapterServiceStub(channel).RegisterAdapter(metadata=metadata)
    return [predictions, watch, upload]


async def end_of(call: Any) -> tuple[Code, str, float]:
    """How and when a call ends."""
    with suppress(grpc.aio.AioRpcError):
        if isinstance(call, grpc.aio.StreamUnaryCall):
            await call
        else:
            while await call.read() is not grpc.aio.EOF:
                pass
    ended = await call.code(), await call.initial_metadata(), await call.trailing_metadata()
    error = from_rpc_error(grpc.aio.AioRpcError(*ended))
    return error.code, error.reason, time.monotonic()


async def started(harness: Harness, channel: grpc.aio.Channel, credential: str) -> list[Any]:
    streams = open_streams(channel, credential)
    await streams[0].write(inference_pb2.PredictStreamRequest(id="1", input={"task": "sst2", "text": "w1"}))
    assert (await streams[0].read()).id == "1"
    assert (await streams[1].read()).task.name
    await streams[2].write(adapters_pb2.RegisterAdapterRequest(header={"task": "new"}))
    return streams


@pytest.mark.parametrize("cause", ["revoked", "expired"])
async def test_open_streams_end_with_their_credential(
    cause: str,
    start_serving: StartServing,
    authority: Authority,
    tmp_path: Path,
    make_key: Callable[..., tuple[str, str]],
) -> None:
    life_us = 1_500_000 if cause == "expired" else 3_600_000_000
    text, key_id = make_key(expire_time_us=time.time_ns() // 1000 + life_us)
    ends_at = time.monotonic() + life_us / 1e6
    other, _ = make_key()
    harness = await start_serving(settings=settings_of(tmp_path, authority, "keys"))
    credentials = grpc.ssl_channel_credentials(authority.cert)
    async with grpc.aio.secure_channel(harness.address, credentials) as channel:
        streams = await started(harness, channel, text)
        others = await started(harness, channel, other)
        probe = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await probe.read()).status
        if cause == "revoked":
            await revoke(harness, key_id)
            ends_at = time.monotonic()
        for ended in await asyncio.gather(*map(end_of, streams)):
            assert ended[:2] == (Code.UNAUTHENTICATED, "KEY_INVALID")
            assert ended[2] - ends_at < SOON_S + 0.5, "half a second for a busy machine"
        await others[0].write(inference_pb2.PredictStreamRequest(id="2", input={"task": "sst2", "text": "w1"}))
        assert (await others[0].read()).id == "2", "the others go on"
        for call in (*others, probe):
            assert not call.done()
            call.cancel()


async def test_tokens_over_tls(
    start_serving: StartServing, authority: Authority, tmp_path: Path, make_key: Callable[..., tuple[str, str]]
) -> None:
    text, _ = make_key()
    issuer = Issuer()
    settings = settings_of(
        tmp_path,
        authority,
        "keys",
        "jwt",
        jwt_jwks=issuer.write(tmp_path / "jwks.json"),
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        jwt_tenant_claim="org",
    )
    harness = await start_serving(settings=settings)
    now = int(time.time())
    token = issuer.token(nbf=now, exp=now + 60, org="acme", scope="infer")
    assert len((await using(harness, predict, ca=authority.cert, api_key=token)).predictions) == 1
    assert len((await using(harness, predict, ca=authority.cert, api_key=text)).predictions) == 1
    foreign = issuer.token(nbf=now, exp=now + 60, org="nobody", scope="infer")
    assert isinstance(await using(harness, predict, ca=authority.cert, api_key=foreign), Unauthenticated)


async def test_certificates_of_callers(
    start_serving: StartServing, authority: Authority, tmp_path: Path, make_key: Callable[..., tuple[str, str]]
) -> None:
    text, _ = make_key()
    harness = await start_serving(settings=settings_of(tmp_path, authority, "mtls"))
    caller = authority.issue("svc", ["spiffe://example.org/tenant/acme/role/caller"])
    shown = {"ca": authority.cert, "cert": caller.cert, "key": caller.key}
    assert len((await using(harness, predict, **shown)).predictions) == 1
    assert isinstance(await using(harness, Client.tasks, **shown), PermissionDenied)
    assert isinstance(await using(harness, predict, **shown, api_key=text), Unauthenticated), "keys are not asked for"
    assert isinstance(await using(harness, predict, ca=authority.cert), Unavailable), "no certificate, no connection"
    stranger = Authority("other").issue("svc", ["spiffe://example.org/tenant/acme/role/operator"])
    assert isinstance(
        await using(harness, predict, ca=authority.cert, cert=stranger.cert, key=stranger.key), Unavailable
    )


async def test_the_ca_of_callers_is_exchanged(
    start_serving: StartServing, authority: Authority, tmp_path: Path, make_key: Callable[..., tuple[str, str]]
) -> None:
    make_key()
    harness = await start_serving(settings=settings_of(tmp_path, authority, "mtls"))
    newer, uris = Authority("newer"), ["spiffe://example.org/tenant/acme/role/caller"]
    old, new = authority.issue("svc", uris), newer.issue("svc", uris)

    async def asked(caller: Issued) -> Any:
        return await using(harness, predict, ca=authority.cert, cert=caller.cert, key=caller.key)

    assert [isinstance(await asked(caller), Unavailable) for caller in (old, new)] == [False, True]
    (tmp_path / "client_ca.pem").write_bytes(authority.cert + newer.cert)
    assert [isinstance(await asked(caller), Unavailable) for caller in (old, new)] == [False, False]
    (tmp_path / "client_ca.pem").write_bytes(newer.cert)
    assert [isinstance(await asked(caller), Unavailable) for caller in (old, new)] == [True, False]


async def test_with_keys_and_certificates_both_are_shown_and_the_key_decides(
    start_serving: StartServing, authority: Authority, tmp_path: Path, make_key: Callable[..., tuple[str, str]]
) -> None:
    text, _ = make_key("caller")
    harness = await start_serving(settings=settings_of(tmp_path, authority, "keys", "mtls"))
    operator = authority.issue("svc", ["spiffe://example.org/tenant/acme/role/operator"])
    shown = {"ca": authority.cert, "cert": operator.cert, "key": operator.key}
    assert len((await using(harness, predict, **shown, api_key=text)).predictions) == 1
    assert isinstance(await using(harness, Client.tasks, **shown, api_key=text), PermissionDenied), "it is a caller's"
    assert isinstance(await using(harness, predict, **shown), Unauthenticated)
    assert isinstance(await using(harness, predict, ca=authority.cert, api_key=text), Unavailable)


async def test_a_certificate_is_exchanged_while_connections_run(
    start_serving: StartServing,
    authority: Authority,
    tmp_path: Path,
    make_key: Callable[..., tuple[str, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    text, _ = make_key()
    harness = await start_serving(settings=settings_of(tmp_path, authority, "keys"))
    newer = Authority("newer")
    issued = newer.issue()
    running = Client(harness.address, ca=authority.cert, api_key=text)
    try:
        assert await asyncio.to_thread(predict, running)
        (tmp_path / "cert.pem").write_bytes(issued.cert)
        assert (await using(harness, predict, ca=authority.cert, api_key=text)).predictions, "half of the new pair"
        assert any("stays as it was" in message for message in caplog.messages)
        (tmp_path / "key.pem").write_bytes(issued.key)
        assert (await using(harness, predict, ca=newer.cert, api_key=text)).predictions
        assert isinstance(await using(harness, predict, ca=authority.cert, api_key=text), Unavailable)
        assert await asyncio.to_thread(predict, running), "its connection was made with the old one"
        (tmp_path / "cert.pem").write_bytes(b"nonsense")
        (tmp_path / "key.pem").unlink()
        assert (await using(harness, predict, ca=newer.cert, api_key=text)).predictions, "the last good one stays"
    finally:
        running.close()


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1:DeprecationWarning")
async def test_tls_is_1_2_or_newer(start_serving: StartServing, authority: Authority, tmp_path: Path) -> None:
    harness = await start_serving(settings=settings_of(tmp_path, authority, "keys"))
    host, _, port = harness.address.rpartition(":")

    def spoken(version: ssl.TLSVersion) -> str | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.set_alpn_protocols(["h2"])
        context.minimum_version = context.maximum_version = version
        try:
            with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain) as encrypted:
                return encrypted.version()
        except (ssl.SSLError, OSError):
            return None

    versions = [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
    assert [await asyncio.to_thread(spoken, version) for version in versions] == [None, "TLSv1.2", "TLSv1.3"]


async def test_a_revocation_that_a_front_end_has_not_seen_is_not_done(
    store: Path, spec: BackboneSpec, make_key: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, key_id = make_key()
    catalog, agreement = Catalog(store, backbone_fingerprint=spec.fingerprint), Party()
    view = CatalogView(catalog, spec, agreement, Availability(catalog.blobs, 1 << 30, "float32"))
    monkeypatch.setattr(catalog_view, "AGREEMENT_TIMEOUT_S", 0.05)

    async def revoke_it(*, must_be_seen: bool) -> KeyRow:
        return await view.change(lambda: catalog.keys.revoke(key_id, tenant="acme"), must_be_seen=must_be_seen)

    try:
        for _ in range(2):
            with pytest.raises(Unavailable) as said:
                await revoke_it(must_be_seen=True)
            assert (said.value.reason, said.value.retry_after_s is not None) == ("CHANGE_UNSEEN", True)
        assert (await revoke_it(must_be_seen=False)).revoke_time_us, "other changes are answered all the same"
        # Answered once the last call that began before is, or after a second.
        agreement.take(Agreed(revision=view.snapshot.revision, oldest=0))
        monkeypatch.setattr(catalog_view, "LAST_CALLS_S", 60.0)
        answer = asyncio.create_task(revoke_it(must_be_seen=True))
        await asyncio.wait({answer}, timeout=0.1)
        assert not answer.done()
        agreement.take(Agreed(revision=view.snapshot.revision, oldest=view.snapshot.revision))
        assert (await answer).revoke_time_us
        agreement.take(Agreed(revision=view.snapshot.revision, oldest=0))
        monkeypatch.setattr(catalog_view, "LAST_CALLS_S", 0.05)
        assert (await revoke_it(must_be_seen=True)).revoke_time_us
        # Nor may this front end itself be behind.
        monkeypatch.setattr(catalog_view, "AGREEMENT_TIMEOUT_S", 0.0)
        monkeypatch.setattr(view, "_read", store_is_lost)
        with pytest.raises(Unavailable) as said:
            await revoke_it(must_be_seen=True)
        assert said.value.reason == "CHANGE_UNSEEN"
    finally:
        view.close()


def store_is_lost() -> NoReturn:
    raise Unavailable("the store is gone", reason="STORE_LOST")
