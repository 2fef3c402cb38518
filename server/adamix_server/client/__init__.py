"""A small typed client of the server: `Client`, and the values it takes and gives."""

from adamix_server.api.answers import Classification, Embedding, MultiLabel, Regression, Result
from adamix_server.client.access_values import AuditEntry, Grant, Identity, Key, NewKey, Tenant, Usage
from adamix_server.client.administration import ALL_TENANTS
from adamix_server.client.client import Client
from adamix_server.client.generate_values import ChatMessage, GenerateDelta, GeneratedText, TokenLogprob, TokenUsage
from adamix_server.client.values import (
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
