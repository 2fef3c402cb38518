"""The port that front ends share: theirs alone, and theirs for as long as it is held."""

import socket
from collections.abc import Iterator

import pytest

from adamix.errors import InvalidConfig
from adamix_client.addresses import split_address
from adamix_server.port import held_port


def listening(address: str, *, shares: bool) -> socket.socket:
    """A listener as a front end makes it."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shares:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind(split_address(address))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


@pytest.fixture
def held() -> Iterator[str]:
    with held_port("127.0.0.1:0") as address:
        yield address


def test_port_zero_becomes_one_port_that_several_listen_on(held: str) -> None:
    assert split_address(held)[1] > 0
    with listening(held, shares=True), listening(held, shares=True):
        client = socket.create_connection(split_address(held), timeout=5)
        client.close()


def test_nobody_is_answered_by_the_held_port_itself(held: str) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(split_address(held), timeout=5)


@pytest.mark.parametrize("how", ["listening", "between two front ends"])
def test_a_second_server_is_refused(held: str, how: str) -> None:
    listener = listening(held, shares=True)
    if how != "listening":
        listener.close()
    with pytest.raises(InvalidConfig, match=held) as refused, held_port(held):
        pass
    assert refused.value.reason == "ADDRESS_IN_USE"
    with pytest.raises(OSError, match="in use"):
        listening(held, shares=False)
    listener.close()


def test_a_server_of_one_front_end_is_not_joined() -> None:
    with listening("127.0.0.1:0", shares=False) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(InvalidConfig), held_port(address):
            pass


def test_connections_of_an_earlier_server_are_no_obstacle() -> None:
    with listening("127.0.0.1:0", shares=False) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        client = socket.create_connection(split_address(address), timeout=5)
        accepted, _ = listener.accept()
        # The side that closes first is the one that waits.
        accepted.close()
        client.close()
    with held_port(address) as again:
        assert again == address


def test_a_name_of_several_addresses_has_one_port() -> None:
    with held_port("localhost:0") as address, listening(address.replace("localhost", "127.0.0.1"), shares=True):
        assert address.startswith("localhost:")


@pytest.mark.parametrize("listen", ["192.0.2.1:0", "no-such-host.invalid:0"])
def test_an_address_of_another_machine_is_refused(listen: str) -> None:
    with pytest.raises(InvalidConfig, match="not an address of this machine"), held_port(listen):
        pass
