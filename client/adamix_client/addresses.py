"""What `HOST:PORT` says. Pure."""

import ipaddress

from adamix_client.errors import InvalidConfig


def split_address(address: str, field: str = "listen") -> tuple[str, int]:
    """`host:port` -> (host, port); `[::1]:50051` for IPv6. Raises InvalidConfig, for the setting `field`."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535 or not host:
        raise InvalidConfig(f"{address!r} is not HOST:PORT", field=field)
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
