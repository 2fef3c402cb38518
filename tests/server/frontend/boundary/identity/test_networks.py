"""Where a call comes from, for keys that count in some networks alone."""

import ipaddress

import pytest

from adamix_server.frontend.boundary.identity.networks import caller_address, is_within
from adamix_testing.credentials import Shown

PROXIES = (ipaddress.ip_network("10.0.0.0/8"),)


@pytest.mark.parametrize(
    ("peer", "noted", "address"),
    [
        ("ipv4:192.0.2.7:51234", [], "192.0.2.7"),
        ("ipv6:%5B2001:db8::1%5D:51234", [], "2001:db8::1"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:1", [], "192.0.2.7"),
        ("ipv4:127.0.0.1:5", [], "127.0.0.1"),
        ("unix:/tmp/x", [], None),
        # Whoever is no proxy may write what he likes.
        ("ipv4:192.0.2.7:51234", ["198.51.100.1"], "192.0.2.7"),
        # A proxy's own address says nothing of the caller.
        ("ipv4:10.1.1.1:5", [], None),
        ("ipv4:10.1.1.1:5", ["192.0.2.7"], "192.0.2.7"),
        ("ipv4:10.1.1.1:5", ["198.51.100.1, 192.0.2.7"], "192.0.2.7"),
        ("ipv4:10.1.1.1:5", ["198.51.100.1", "192.0.2.7, 10.3.3.3"], "192.0.2.7"),
        ("ipv4:10.1.1.1:5", ["10.3.3.3"], None),
        ("ipv4:10.1.1.1:5", ["192.0.2.7, nobody"], None),
        ("ipv4:10.1.1.1:5", ["192.0.2.7", b"192.0.2.7"], None),
    ],
)
def test_the_callers_own_address(peer: str, noted: list[str | bytes], address: str | None) -> None:
    found = caller_address(Shown(*(("x-forwarded-for", value) for value in noted), peer=peer), PROXIES)
    assert (None if found is None else str(found)) == address


def test_networks_have_their_borders() -> None:
    networks = ("192.0.2.0/25", "2001:db8::/32")
    inside = [ipaddress.ip_address(text) for text in ("192.0.2.127", "2001:db8::5")]
    outside = [ipaddress.ip_address(text) for text in ("192.0.2.128", "2001:db9::5", "::1")]
    assert all(is_within(address, networks) for address in inside)
    assert not any(is_within(address, networks) for address in (*outside, None))
