"""The client of an adamix server: `Client` and `AsyncClient`, their values, and their errors in `errors`.

Names are imported when they are asked for: whoever needs the errors alone loads no gRPC.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamix_client.access_values import ALL_TENANTS, AuditEntry, Grant, Identity, Key, NewKey, Tenant, Usage
    from adamix_client.aio.client import AsyncClient
    from adamix_client.chunks import OnError, Text
    from adamix_client.client import Client
    from adamix_client.generate_values import ChatMessage, GenerateDelta, GeneratedText, TokenLogprob, TokenUsage
    from adamix_client.results import Classification, Embedding, MultiLabel, Regression, Result
    from adamix_client.retries import RetryPolicy
    from adamix_client.values import (
        Input,
        Load,
        Prediction,
        Predictions,
        Registered,
        ServerFile,
        ServerInfo,
        StreamedPrediction,
        StreamInput,
        Task,
        TaskChange,
        Timing,
        Version,
    )

__all__ = [
    "ALL_TENANTS",
    "AsyncClient",
    "AuditEntry",
    "ChatMessage",
    "Classification",
    "Client",
    "Embedding",
    "GenerateDelta",
    "GeneratedText",
    "Grant",
    "Identity",
    "Input",
    "Key",
    "Load",
    "MultiLabel",
    "NewKey",
    "OnError",
    "Prediction",
    "Predictions",
    "Registered",
    "Regression",
    "Result",
    "RetryPolicy",
    "ServerFile",
    "ServerInfo",
    "StreamInput",
    "StreamedPrediction",
    "Task",
    "TaskChange",
    "Tenant",
    "Text",
    "Timing",
    "TokenLogprob",
    "TokenUsage",
    "Usage",
    "Version",
]

_HOMES = {
    "access_values": (
        "ALL_TENANTS",
        "AuditEntry",
        "Grant",
        "Identity",
        "Key",
        "NewKey",
        "Tenant",
        "Usage",
    ),
    "aio.client": ("AsyncClient",),
    "chunks": ("OnError", "Text"),
    "client": ("Client",),
    "generate_values": (
        "ChatMessage",
        "GenerateDelta",
        "GeneratedText",
        "TokenLogprob",
        "TokenUsage",
    ),
    "results": (
        "Classification",
        "Embedding",
        "MultiLabel",
        "Regression",
        "Result",
    ),
    "retries": ("RetryPolicy",),
    "values": (
        "Input",
        "Load",
        "Prediction",
        "Predictions",
        "Registered",
        "ServerFile",
        "ServerInfo",
        "StreamInput",
        "StreamedPrediction",
        "Task",
        "TaskChange",
        "Timing",
        "Version",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if (module := _HOME_OF.get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
