"""The name that `adamix_client` had before it was a distribution of its own; gone in the version after this one."""

import warnings
from typing import Any

import adamix_client

__all__ = adamix_client.__all__

warnings.warn("adamix_server.client is adamix_client now", DeprecationWarning, stacklevel=2)


def __getattr__(name: str) -> Any:
    return getattr(adamix_client, name)


def __dir__() -> list[str]:
    return adamix_client.__dir__()
