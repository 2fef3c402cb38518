from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Backbone(_message.Message):
    __slots__ = ("name", "model_type", "fingerprint", "tokenizer_fingerprint", "pooler_fingerprint", "hidden_size", "num_layers", "max_tokens")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_TYPE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    POOLER_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    name: str
    model_type: str
    fingerprint: str
    tokenizer_fingerprint: str
    pooler_fingerprint: str
    hidden_size: int
    num_layers: int
    max_tokens: int
    def __init__(self, name: _Optional[str] = ..., model_type: _Optional[str] = ..., fingerprint: _Optional[str] = ..., tokenizer_fingerprint: _Optional[str] = ..., pooler_fingerprint: _Optional[str] = ..., hidden_size: _Optional[int] = ..., num_layers: _Optional[int] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_inputs_per_call", "max_text_bytes", "max_message_bytes", "max_batch_tokens", "max_queue_inputs", "max_queue_tokens", "max_adapter_bytes", "default_timeout_s", "max_timeout_s")
    MAX_INPUTS_PER_CALL_FIELD_NUMBER: _ClassVar[int]
    MAX_TEXT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_ADAPTER_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    MAX_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    max_inputs_per_call: int
    max_text_bytes: int
    max_message_bytes: int
    max_batch_tokens: int
    max_queue_inputs: int
    max_queue_tokens: int
    max_adapter_bytes: int
    default_timeout_s: float
    max_timeout_s: float
    def __init__(self, max_inputs_per_call: _Optional[int] = ..., max_text_bytes: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_batch_tokens: _Optional[int] = ..., max_queue_inputs: _Optional[int] = ..., max_queue_tokens: _Optional[int] = ..., max_adapter_bytes: _Optional[int] = ..., default_timeout_s: _Optional[float] = ..., max_timeout_s: _Optional[float] = ...) -> None: ...

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("backbone", "compute_dtype", "quantisation", "limits", "server_version", "device")
    BACKBONE_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    QUANTISATION_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    backbone: Backbone
    compute_dtype: str
    quantisation: str
    limits: Limits
    server_version: str
    device: str
    def __init__(self, backbone: _Optional[_Union[Backbone, _Mapping]] = ..., compute_dtype: _Optional[str] = ..., quantisation: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., server_version: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class GetLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLoadResponse(_message.Message):
    __slots__ = ("queued_inputs", "queued_tokens", "running_inputs", "resident_adapters", "slots")
    QUEUED_INPUTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_INPUTS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    queued_inputs: int
    queued_tokens: int
    running_inputs: int
    resident_adapters: int
    slots: int
    def __init__(self, queued_inputs: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., running_inputs: _Optional[int] = ..., resident_adapters: _Optional[int] = ..., slots: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
