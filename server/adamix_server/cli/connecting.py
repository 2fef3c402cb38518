"""How commands reach a server: its address, and what they show it.

A key stands in the environment or in a file, never in an argument, which everybody on the machine can read.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adamix.errors import InvalidConfig
from adamix_client.addresses import split_address

if TYPE_CHECKING:
    from adamix_client import Client

DEFAULT_SERVER = "127.0.0.1:50051"
_TLS_SCHEME = "grpcs://"
_HTTP_SCHEMES = ("http://", "https://")
_MAX_KEY_BYTES = 16 << 10

ServerOption = Annotated[
    str, typer.Option(help="HOST:PORT of the server; grpcs://HOST:PORT for TLS.", envvar="ADAMIX_SERVER")
]
KeyFileOption = Annotated[
    Path | None, typer.Option(help="File with the API key or token to show.  [default: ADAMIX_API_KEY]")
]


def connect(server: str, api_key_file: Path | None = None) -> "Client":
    """A client with the credentials of the environment (`ADAMIX_API_KEY ADAMIX_CA ADAMIX_CERT ADAMIX_KEY`).

    Args:
        api_key_file: whose key goes before that of the environment.

    Raises:
        InvalidConfig: the address, a file or what they say together cannot be used.
    """
    from adamix_client import Client
    from adamix_client.destination import Credentials, from_environment

    if server.startswith(_HTTP_SCHEMES):
        raise InvalidConfig(
            f"{server}: commands speak gRPC: say HOST:PORT of the server's --listen, or {_TLS_SCHEME}HOST:PORT",
            field="server",
        )
    split_address(
        server.removeprefix(_TLS_SCHEME), "server"
    )  # gRPC takes anything: without a port it would ask port 443
    _, credentials = from_environment()
    if api_key_file is not None:
        credentials = Credentials(api_key=_key(api_key_file)).over(credentials)
    return Client(server, ca=credentials.ca, cert=credentials.cert, key=credentials.key, api_key=credentials.api_key)


def _key(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_KEY_BYTES).decode("ascii").strip()
    except OSError as error:
        raise InvalidConfig(f"--api-key-file: {path}: {error.strerror}", field="api_key_file") from None
    except UnicodeDecodeError:
        raise InvalidConfig(f"--api-key-file: {path} holds no key", field="api_key_file") from None
