"""What a client shows, to whom, and what it refuses to say in clear."""

from pathlib import Path
from typing import Any

import pytest

from adamix.errors import InvalidConfig
from adamix_client import Client
from adamix_client.destination import Credentials, Destination, from_environment
from adamix_server.cli.connecting import connect
from adamix_testing.credentials import Authority

KEY = "adx_" + "a" * 12 + "_" + "B" * 49


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    authority = Authority()
    issued = authority.issue()
    contents = {"ca": authority.cert, "cert": issued.cert, "key": issued.key}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in contents}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERVER", "API_KEY", "CA", "CERT", "KEY"):
        monkeypatch.delenv(f"ADAMIX_{name}", raising=False)


@pytest.mark.parametrize(
    "address", ["10.0.0.7:50051", "example.org:50051", "0.0.0.0:1", "dns:///localhost:1", "nowhere"]
)
def test_a_key_goes_unencrypted_to_nobody_else(address: str, files: dict[str, Path]) -> None:
    with pytest.raises(InvalidConfig, match="a key is not sent unencrypted to") as said:
        Client(address, api_key=KEY)
    assert said.value.reason == "INSECURE_ADDRESS"
    assert KEY not in said.value.message
    Client(f"grpcs://{address}", api_key=KEY).close()
    Client(address, api_key=KEY, ca=files["ca"]).close()
    Client(address).close()


@pytest.mark.parametrize("address", ["127.0.0.1:50051", "[::1]:50051", "localhost:50051", "unix:/tmp/x"])
def test_on_this_machine_it_may(address: str) -> None:
    Client(address, api_key=KEY).close()


@pytest.mark.parametrize("api_key", ["", "a b", "adx_\n", "ädx", "adx\x00"])
def test_a_key_is_one_word(api_key: str) -> None:
    with pytest.raises(InvalidConfig) as said:
        Client("127.0.0.1:1", api_key=api_key)
    assert not api_key or api_key not in said.value.message


def test_files_are_read_when_a_client_is_made(files: dict[str, Path], tmp_path: Path) -> None:
    text = {name: str(path) for name, path in files.items()}
    data = {name: path.read_bytes() for name, path in files.items()}
    for given in (files, text, data):
        Client("example.org:1", **given).close()  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match=r"ca: .*/nothing does not exist"):
        Client("example.org:1", ca=tmp_path / "nothing")
    with pytest.raises(InvalidConfig, match="given together"):
        Client("example.org:1", cert=files["cert"])


def test_what_is_printed_of_it_holds_no_secret(files: dict[str, Path]) -> None:
    credentials = Credentials(api_key=KEY, cert=files["cert"], key=b"secret")
    assert KEY not in repr(credentials)
    assert "secret" not in repr(credentials)
    assert KEY not in repr(Destination("127.0.0.1:1", Credentials(api_key=KEY)))


def test_the_environment_is_for_those_who_name_no_server(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert from_environment() == ("127.0.0.1:50051", Credentials())
    monkeypatch.setenv("ADAMIX_SERVER", "grpcs://example.org:1")
    monkeypatch.setenv("ADAMIX_API_KEY", f"{KEY}\n")
    for name, path in files.items():
        monkeypatch.setenv(f"ADAMIX_{name.upper()}", str(path))
    told = from_environment()[1]
    assert (told.api_key, told.ca, told.cert, told.key) == (KEY, *(str(files[name]) for name in ("ca", "cert", "key")))

    def shown(client: Client) -> Any:
        with client:
            return (
                client.address,
                client._calls.connection._destination.metadata,
                client._calls.connection._destination.has_tls,
            )

    metadata = (("authorization", f"Bearer {KEY}"),)
    assert shown(Client()) == ("grpcs://example.org:1", metadata, True)
    assert shown(Client(api_key="other")) == ("grpcs://example.org:1", (("authorization", "Bearer other"),), True)
    assert shown(Client("127.0.0.1:1")) == ("127.0.0.1:1", (), False)
    # A command shows what it finds there to whichever server it is told.
    assert shown(connect("127.0.0.1:1")) == ("127.0.0.1:1", metadata, True)


def test_commands_take_a_key_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAMIX_API_KEY", "other")
    path = tmp_path / "operator.key"
    path.write_text(f"{KEY}\n")
    with connect("127.0.0.1:1", path) as client:
        assert client._calls.connection._destination.metadata == (("authorization", f"Bearer {KEY}"),)
    for wrong in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InvalidConfig, match="--api-key-file"):
            connect("127.0.0.1:1", wrong)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidConfig, match="holds no key"):
        connect("127.0.0.1:1", path)
    with pytest.raises(InvalidConfig, match="is not HOST:PORT"):
        connect("grpcs://example.org")
    with pytest.raises(InvalidConfig, match="not sent unencrypted"):
        connect("example.org:1")
