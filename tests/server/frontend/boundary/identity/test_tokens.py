"""Tokens of an issuer: what a good one is, and every way in which one is not."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adamix.errors import InvalidConfig
from adamix_server.access.refusal import Refusal
from adamix_server.access.rights import RIGHTS
from adamix_server.config import AccessSettings
from adamix_server.frontend.boundary.identity import identity as identities
from adamix_server.frontend.boundary.identity import tokens as module
from adamix_server.frontend.boundary.identity.identity import Identity
from adamix_server.frontend.boundary.identity.tokens import Tokens
from adamix_server.trust import files
from adamix_server.trust.jwks import VerificationKey, read_jwks
from adamix_testing.credentials import AUDIENCE, ISSUER, Issuer, Shown, bearer, make_access

ACCESS = make_access()
ISSUED = Issuer()
KEYS = tuple(VerificationKey(name, name, key.public_key()) for name, key in ISSUED.keys.items())


def settings(jwks: Path) -> AccessSettings:
    return AccessSettings(auth=("jwt",), jwt_jwks=jwks, jwt_issuer=ISSUER, jwt_audience=AUDIENCE)


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    jwks = ISSUED.write(tmp_path / "jwks.json")
    return Tokens(settings(jwks), read_jwks(jwks))


def refusal(tokens: Tokens, token: str, now_s: float = 1_000.0) -> str:
    with pytest.raises(Refusal) as said:
        tokens.principal_of(token, ACCESS, now_s)
    assert token not in said.value.name
    return said.value.kind


def part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_good_token(tokens: Tokens, algorithm: str) -> None:
    principal = tokens.principal_of(ISSUED.token(algorithm), ACCESS, 1_000.0)
    assert (principal.name, principal.tenant, principal.rights) == ("tokens/ann", "acme", {"infer", "read"})
    assert (principal.expire_time_s, principal.key_id, principal.task_pattern) == (2_030.0, "", "")
    assert tokens.principal_of(ISSUED.token(algorithm, {"kid": None}), ACCESS, 1_000.0) == principal


@pytest.mark.parametrize(
    ("kind", "claims"),
    [
        ("issuer", {"iss": "https://other.example"}),
        ("issuer", {"iss": None}),
        ("issuer", {"iss": ISSUER + "/"}),
        ("audience", {"aud": "other"}),
        ("audience", {"aud": None}),
        ("audience", {"aud": ["other", "adamix2"]}),
        ("audience", {"aud": {"adamix": 1}}),
        ("claim", {"exp": None}),
        ("claim", {"nbf": None}),
        ("claim", {"exp": "2000"}),
        ("claim", {"exp": True}),
        ("claim", {"exp": float("nan")}),
        ("claim", {"exp": float("inf")}),
        ("claim", {"exp": 10**400}),
        ("claim", {"tenant": None}),
        ("claim", {"tenant": ""}),
        ("claim", {"tenant": ["acme"]}),
        ("claim", {"scope": ["infer"]}),
        ("expired", {"exp": 969}),
        ("not_yet", {"nbf": 1_031}),
        ("tenant_gone", {"tenant": "deleted"}),
    ],
)
def test_what_a_token_must_say(tokens: Tokens, kind: str, claims: dict[str, Any]) -> None:
    assert refusal(tokens, ISSUED.token(**claims)) == kind


def test_thirty_seconds_are_forgiven_and_no_more(tokens: Tokens) -> None:
    assert tokens.principal_of(ISSUED.token(exp=970.001), ACCESS, 1_000.0)
    assert tokens.principal_of(ISSUED.token(nbf=1_030), ACCESS, 1_000.0)
    assert refusal(tokens, ISSUED.token(exp=970)) == "expired"
    assert refusal(tokens, ISSUED.token(nbf=1_030.001)) == "not_yet"


def test_a_remembered_token_is_asked_for_its_time_again(tokens: Tokens) -> None:
    token = ISSUED.token()
    assert tokens.principal_of(token, ACCESS, 1_000.0)
    assert refusal(tokens, token, 800.0) == "not_yet", "the clock was set back"
    assert tokens.principal_of(token, ACCESS, 1_000.0)
    assert refusal(tokens, token, 2_030.0) == "expired", "and forward"
    with pytest.raises(Refusal, match="tenant_gone"):
        tokens.principal_of(token, make_access(tenants=["default"]), 1_000.0)


def test_tokens_are_verified_once(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []
    real = jwt.decode

    def decode(token: str, *args: Any, **kwargs: Any) -> Any:
        verified.append(token)
        return real(token, *args, **kwargs)

    monkeypatch.setattr(module.jwt, "decode", decode)
    monkeypatch.setattr(module, "MAX_REMEMBERED", 2)
    first, second, third = (ISSUED.token(sub=name) for name in ("a", "b", "c"))
    for token in (first, first, second, first, third, first, second):
        tokens.principal_of(token, ACCESS, 1_000.0)
    assert verified == [first, second, third, second], "the one that was not used for longest was forgotten"
    tokens.keys = tokens.keys
    tokens.principal_of(first, ACCESS, 1_000.0)
    assert verified[-1] == first, "with the keys all is forgotten that they have verified"


def test_rights_come_from_the_scope(tokens: Tokens) -> None:
    def rights(**claims: Any) -> frozenset[str]:
        return tokens.principal_of(ISSUED.token(**claims), ACCESS, 1_000.0).rights

    assert rights(scope=None) == rights(scope="") == rights(scope="openid INFER infer:all") == frozenset()
    assert rights(scope="openid keys operate profile") == {"keys", "operate"}
    assert rights(scope=" ".join(RIGHTS)) == frozenset(RIGHTS) - {"admin"}, "no tenant's token is an operator's"
    assert rights(scope="admin", tenant="default") == {"admin"}


def test_a_subject_is_fit_for_a_log(tokens: Tokens) -> None:
    def name(sub: Any) -> str:
        return tokens.principal_of(ISSUED.token(sub=sub), ACCESS, 1_000.0).name

    assert name(None) == name("a\nb") == name(7) == "tokens/?"
    assert name("x" * 200) == "tokens/" + "x" * 128


def test_the_token_has_no_say_in_its_algorithm(tokens: Tokens) -> None:
    token = ISSUED.token("RS256")
    body = token.split(".")[1]
    public = str(ISSUED.jwk("RS256")["n"])
    assert refusal(tokens, f"{part({'alg': 'none', 'kid': 'RS256'})}.{body}.") == "algorithm"
    assert refusal(tokens, f"{part({'alg': 'ES256', 'kid': 'RS256'})}.{body}.AAAA") == "algorithm"
    # The public key as the secret of an HMAC.
    confused = jwt.encode({"iss": ISSUER}, public, "HS256", {"kid": "RS256"})
    assert refusal(tokens, confused) == "algorithm"
    rs512 = jwt.encode({"iss": ISSUER}, ISSUED.keys["RS256"], "RS512", {"kid": "RS256"})
    assert refusal(tokens, rs512) == "algorithm"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_signature_of_somebody_else(tokens: Tokens, algorithm: str) -> None:
    assert refusal(tokens, Issuer().token(algorithm)) == "signature"
    head, body, signature = ISSUED.token(algorithm).split(".")
    forged = part({"iss": ISSUER, "aud": AUDIENCE, "nbf": 900, "exp": 2_000, "tenant": "default", "scope": "admin"})
    assert refusal(tokens, f"{head}.{forged}.{signature}") == "signature"
    assert refusal(tokens, f"{head}.{body}.") in ("signature", "malformed")


def test_a_key_that_the_issuer_does_not_have(tokens: Tokens) -> None:
    assert refusal(tokens, ISSUED.token(headers={"kid": "old"})) == "unknown"
    assert refusal(tokens, ISSUED.token(headers={"jwk": ISSUED.jwk("EdDSA"), "kid": "mine"})) == "unknown"


def test_what_is_no_token(tokens: Tokens) -> None:
    good = ISSUED.token()
    head, body, signature = good.split(".")
    for text in (
        "..",
        "a.b.c",
        f"{head}..{signature}",
        f"{part([1])}.{body}.{signature}",
        f"{part({'alg': 'EdDSA', 'kid': 7})}.{body}.{signature}",
        f"{base64.urlsafe_b64encode(b'[' * 3000).decode()}.{body}.{signature}",
        f"{head}.{body}.!!!",
    ):
        assert refusal(tokens, text) in ("malformed", "signature"), text
    assert refusal(tokens, ISSUED.token(headers={"crit": ["exp"]})) == "malformed"
    assert refusal(tokens, ISSUED.token(headers={"b64": False})) == "malformed"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
_CLAIMS = st.sampled_from(["iss", "aud", "exp", "nbf", "iat", "sub", "jti", "tenant", "scope"])
_HEADERS = st.sampled_from(["alg", "kid", "typ", "cty", "crit", "b64", "jwk", "x5c", "zip"])


@given(
    headers=st.dictionaries(_HEADERS, _JSON, max_size=3),
    claims=st.dictionaries(_CLAIMS, _JSON, max_size=4) | _JSON,
    is_signed=st.booleans(),
)
def test_whatever_a_token_holds_it_counts_or_is_refused(headers: dict[str, Any], claims: Any, is_signed: bool) -> None:
    head = part({"alg": "EdDSA", "kid": "EdDSA", **headers})
    good = {"iss": ISSUER, "aud": AUDIENCE, "nbf": 900, "exp": 2_000, "tenant": "acme"}
    text = f"{head}.{part({**good, **claims} if isinstance(claims, dict) else claims)}"
    signature = ISSUED.keys["EdDSA"].sign(text.encode()) if is_signed else b"x" * 64
    token = f"{text}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    try:
        principal = Tokens(settings(Path("jwks.json")), KEYS).principal_of(token, ACCESS, 1_000.0)
    except Refusal:
        return
    assert is_signed
    assert principal.tenant in ACCESS.tenants


async def test_keys_are_read_again_and_a_broken_file_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(identities, "_LOOK_S", 0.01)
    path, other = ISSUED.write(tmp_path / "jwks.json"), Issuer()
    refused: list[str] = []
    identity = Identity(
        settings(path), lambda: ACCESS, on_refused=lambda kind, name: refused.append(kind), clock=lambda: 1_000.0
    )
    running = asyncio.create_task(identity.keep_fresh())

    async def exchanged(text: str) -> None:
        before = len(caplog.records)
        new = tmp_path / "new"
        new.write_text(text, encoding="ascii")
        new.replace(path)
        async with asyncio.timeout(5):
            while len(caplog.records) == before:  # noqa: ASYNC110 - a log has no event
                await asyncio.sleep(0.01)

    caplog.set_level("INFO", logger=identities.__name__)
    try:
        basis, old = identity.basis(), ISSUED.token("ES256")
        assert identity(Shown(bearer(old))).tenant == "acme"
        await exchanged("{")
        assert "stay as they were" in caplog.messages[-1]
        assert identity.basis() == basis
        assert identity(Shown(bearer(old))).tenant == "acme"
        await exchanged(json.dumps(other.jwks("ES256")))
        assert identity.basis()[1] is not basis[1]
        assert identity(Shown(bearer(other.token("ES256")))).tenant == "acme"
        with pytest.raises(Exception, match="valid credential"):
            identity(Shown(bearer(old)))
        assert refused == ["signature"], "also a token that was verified before"
    finally:
        running.cancel()


async def test_a_file_that_could_not_be_read_for_a_moment_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identities, "_LOOK_S", 0.01)
    monkeypatch.setattr(files, "RETRY_S", 0.0)
    path, other, tries = ISSUED.write(tmp_path / "jwks.json"), Issuer(), [0]
    identity = Identity(settings(path), lambda: ACCESS, on_refused=lambda kind, name: None, clock=lambda: 1_000.0)

    def read_later(path: Path) -> tuple[VerificationKey, ...]:
        tries[0] += 1
        if tries[0] < 3:
            raise InvalidConfig("too many open files", reason="TRUST_FILE_INVALID")
        return read_jwks(path)

    monkeypatch.setattr(identities, "read_jwks", read_later)
    running, before = asyncio.create_task(identity.keep_fresh()), identity.basis()
    try:
        other.write(path, "ES256")
        async with asyncio.timeout(5):
            while identity.basis()[1] is before[1]:  # noqa: ASYNC110 - a file has no event
                await asyncio.sleep(0.01)
        assert identity(Shown(bearer(other.token("ES256")))).tenant == "acme"
    finally:
        running.cancel()
