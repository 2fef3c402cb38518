"""Files that an operator names: what is wrong with one, in a sentence; and when one has changed."""

import datetime as dt
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from adamix.errors import InvalidConfig
from adamix_server.config import AccessSettings, FrontEndSettings, TlsSettings
from adamix_server.frontend import certificate as certificates
from adamix_server.frontend.certificate import Certificate
from adamix_server.limits.operators import MAX_TRUST_FILE_BYTES
from adamix_server.trust import files
from adamix_server.trust.check import check_files
from adamix_server.trust.files import RETRY_S, Watch, read, stamp
from adamix_server.trust.jwks import read_jwks
from adamix_server.trust.tls import read_pair
from adamix_testing.credentials import AUDIENCE, ISSUER, Authority, Issuer, make_clock, write_pair

CA = Authority()
DAY = dt.timedelta(days=1)


def refused(settings: TlsSettings) -> str:
    with pytest.raises(InvalidConfig) as said:
        read_pair(settings)
    assert said.value.reason == "TRUST_FILE_INVALID"
    return said.value.message


def test_a_file_of_the_most_bytes_is_read_and_one_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * MAX_TRUST_FILE_BYTES)
    assert len(read(path, "--tls-cert")) == MAX_TRUST_FILE_BYTES
    path.write_bytes(b"x" * (MAX_TRUST_FILE_BYTES + 1))
    with pytest.raises(InvalidConfig, match=r"--tls-cert: .* has more than 1,048,576 bytes") as said:
        read(path, "--tls-cert")
    assert said.value.field == "tls_cert"


def test_a_stamp_tells_whether_a_file_was_written_or_exchanged(tmp_path: Path) -> None:
    path, other, link = tmp_path / "a", tmp_path / "b", tmp_path / "link"
    link.symlink_to(path)
    stamps = [stamp([link])]
    path.write_text("1")
    stamps.append(stamp([link]))
    other.write_text("2")
    other.replace(path)
    stamps.append(stamp([link]))
    assert len(set(stamps)) == 3
    assert stamp([link]) == stamps[-1]


def test_files_are_read_again_once_they_change_and_while_they_are_of_no_use(tmp_path: Path) -> None:
    path, (hands, clock) = tmp_path / "file", make_clock()
    path.write_text("1")
    watch = Watch([path], clock)
    assert not watch.is_due()
    path.write_text("22")
    assert [watch.is_due(), watch.is_due()] == [True, False]
    assert [watch.failed("it is not valid yet"), watch.failed("it is not valid yet")] == [True, False]
    hands[0] += RETRY_S - 0.1
    assert not watch.is_due()
    hands[0] += 0.1
    assert [watch.is_due(), watch.is_due()] == [True, False]
    assert not watch.failed("it is not valid yet"), "nothing new"
    assert watch.failed("it has expired")
    path.write_text("333")
    assert watch.is_due()
    assert watch.failed("it has expired"), "another file"
    hands[0] += RETRY_S
    assert watch.is_due()
    hands[0] += RETRY_S
    assert not watch.is_due(), "the last time it was of use"


def test_a_certificate_that_is_not_valid_yet_is_shown_once_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "RETRY_S", 0.0)
    certificate = Certificate(write_pair(tmp_path, CA.issue()))
    write_pair(tmp_path, CA.issue(begin=DAY / 2, end=3 * DAY))
    assert [certificate.newer(), certificate.newer()] == [None, None]
    assert ["is valid only from" in message for message in caplog.messages] == [True]
    later = dt.datetime.now(dt.UTC) + DAY
    monkeypatch.setattr(certificates, "read_pair", partial(read_pair, now=later))
    assert certificate.newer() is not None
    assert certificate.newer() is None


def test_a_good_pair(tmp_path: Path) -> None:
    issued = CA.issue()
    pair = read_pair(write_pair(tmp_path, issued, CA.cert))
    assert (pair.certificate, pair.key, pair.client_ca) == (issued.cert, issued.key, CA.cert)
    assert issued.key.decode() not in repr(pair)
    chain = write_pair(tmp_path, type(issued)(issued.cert + CA.cert, issued.key))
    assert read_pair(chain).certificate == issued.cert + CA.cert


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda s: s.cert.unlink(), "--tls-cert: .*cert.pem does not exist"),
        (lambda s: s.key.unlink(), "--tls-key: .*key.pem does not exist"),
        (lambda s: (s.cert.unlink(), s.cert.mkdir()), "--tls-cert: .* cannot be read: Is a directory"),
        (lambda s: s.cert.write_bytes(b"nonsense"), "--tls-cert: .* holds no certificate in PEM"),
        (lambda s: s.cert.write_bytes(s.cert.read_bytes()[:200]), "--tls-cert: .* holds no certificate in PEM"),
        (lambda s: s.cert.write_bytes(s.key.read_bytes()), "--tls-cert: .* holds no certificate in PEM"),
        (lambda s: s.key.write_bytes(b"nonsense"), "--tls-key: .* holds no private key in PEM"),
        (lambda s: s.key.write_bytes(CA.issue().key), "--tls-key: .* is not the key of the first certificate"),
        (lambda s: s.client_ca.write_bytes(b""), "--client-ca: .* holds no certificate in PEM"),
        (lambda s: s.client_ca.unlink(), "--client-ca: .* does not exist"),
    ],
)
def test_a_pair_that_cannot_be_served_with(tmp_path: Path, spoil: Callable[[TlsSettings], Any], words: str) -> None:
    settings = write_pair(tmp_path, CA.issue(), CA.cert)
    spoil(settings)
    with pytest.raises(InvalidConfig, match=words):
        read_pair(settings)


def test_a_key_with_a_password(tmp_path: Path) -> None:
    settings = write_pair(tmp_path, CA.issue())
    locked = rsa.generate_private_key(65_537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    settings.key.write_bytes(locked)
    assert "is encrypted" in refused(settings)


def test_certificates_have_their_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "has expired on" in refused(write_pair(tmp_path, CA.issue(begin=-3 * DAY, end=-DAY)))
    assert "is valid only from" in refused(write_pair(tmp_path, CA.issue(begin=DAY, end=3 * DAY)))
    old = CA.issue(begin=-3 * DAY, end=-DAY).cert
    assert "every certificate in" in refused(write_pair(tmp_path, CA.issue(), old))
    check_files(FrontEndSettings(tls=write_pair(tmp_path, CA.issue(end=20 * DAY))))
    assert not caplog.records
    check_files(FrontEndSettings(tls=write_pair(tmp_path, CA.issue(end=10 * DAY))))
    assert "expires soon" in caplog.messages[0]


def test_the_keys_of_an_issuer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    issuer, path = Issuer(), tmp_path / "jwks.json"
    good = issuer.jwks()["keys"]
    left_out = [
        7,
        {"kty": "oct", "k": "c2VjcmV0"},
        {**good[0], "alg": "RS512"},
        {**good[0], "use": "enc"},
        {**good[0], "n": "AQAB"},
        {**good[0], "n": 7},
        {**good[1], "crv": "P-384"},
        {**good[1], "x": good[1]["y"]},
        {"kty": ["RSA"]},
        {"kty": "OKP", "crv": "Ed448", "x": "AA"},
        {},
    ]
    path.write_text(json.dumps({"keys": [*left_out, *good]}))
    assert [(key.id, key.algorithm) for key in read_jwks(path)] == [(name, name) for name in issuer.keys]
    assert len(caplog.records) == len(left_out)
    # What should not have been in there is not taken out of it.
    secret = json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(issuer.keys["ES256"]))
    path.write_text(json.dumps({"keys": [secret]}))
    (key,) = read_jwks(path)
    assert not hasattr(key.key, "private_bytes")
    check_files(
        FrontEndSettings(access=AccessSettings(auth=("jwt",), jwt_jwks=path, jwt_issuer=ISSUER, jwt_audience=AUDIENCE))
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("\xff", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is no JWKS"),
        ('{"keys": {}}', "is no JWKS"),
        ('{"keys": []}', "has no key for RS256"),
        ('{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}', "has no key for RS256"),
    ],
)
def test_what_is_no_jwks(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InvalidConfig, match=f"--jwt-jwks: .* {words}"):
        read_jwks(path)
