"""The client of an adamix server: `Client`, the values that it takes and gives, and its errors in `errors`.

Names are imported when they are asked for: whoever needs the errors alone loads no gRPC.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adamix_client.access_values import AuditEntry, Grant, Identity, Key, NewKey, Tenant, Usage
    from adamix_client.administration import ALL_TENANTS
    from adamix_client.client import Client
    from adamix_client.generate_values import ChatMessage, GenerateDelta, GeneratedText, TokenLogprob, TokenUsage
    from adamix_client.results import Classification, Embedding, MultiLabel, Regression, Result
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
    "Prediction",
    "Predictions",
    "Registered",
    "Regression",
    "Result",
    "ServerFile",
    "ServerInfo",
    "StreamInput",
    "StreamedPrediction",
    "Task",
    "TaskChange",
    "Tenant",
    "Timing",
    "TokenLogprob",
    "TokenUsage",
    "Usage",
    "Version",
]

_HOMES = {
    "access_values": (
        "AuditEntry",
        "Grant",
        "Identity",
        "Key",
        "NewKey",
        "Tenant",
        "Usage",
    ),
    "administration": ("ALL_TENANTS",),
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
