"""What a simulated server runs on: seconds of a batch and of a token, of a call and of a refusal."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from adamix.errors import InvalidConfig
from adamix_bench.tenants.report import FORMAT
from adamix_server.config import EngineSettings


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The default is two cores of a small machine, computing MiniLM in fp32.

    Attributes:
        batch_s: of each batch, whatever it holds, and `token_s` of each of its tokens.
        max_batch_tokens: of a full batch; `max_text_tokens` of one text.
        max_queue_inputs, max_queue_tokens: ceilings of the queue.
        call_s: of a call in its front end, `input_s` of each of its inputs, and `refusal_s` of one that is refused.
        link_s: from a front end to the engine, and back.
    """

    batch_s: float = 0.005
    token_s: float = 0.0001285
    max_batch_tokens: int = EngineSettings.max_batch_tokens
    max_text_tokens: int = 128
    max_queue_inputs: int = EngineSettings.max_queue_inputs
    max_queue_tokens: int = EngineSettings.max_queue_tokens
    call_s: float = 0.0004
    input_s: float = 0.00003
    refusal_s: float = 0.00015
    link_s: float = 0.0005

    def __post_init__(self) -> None:
        for name in ("batch_s", "token_s"):
            value = getattr(self, name)
            # Written so that a NaN is refused.
            if not 0 <= value <= 10:
                raise InvalidConfig(f"{name} must be in 0..10 seconds, not {value}", field=name)
        if self.token_s == 0:
            raise InvalidConfig("token_s must be above 0: a device that takes no time has no knee", field="token_s")

    @property
    def knee(self) -> float:
        """Tokens a second in full batches."""
        return self.max_batch_tokens / self.seconds(self.max_batch_tokens)

    def seconds(self, num_tokens: int) -> float:
        return self.batch_s + self.token_s * num_tokens

    @classmethod
    def measured(cls, path: Path) -> Self:
        """Those of the machine that a run was made on, by its document. Raises InvalidConfig."""
        try:
            document: Any = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise InvalidConfig(f"{path} is not the document of a run of `adamix bench tenants`", field="rates")
            rates = document["rates_of_machine"]
            return cls(batch_s=float(rates["batch_s"]), token_s=float(rates["token_s"]))
        except OSError as error:
            raise InvalidConfig(f"{path}: {error.strerror}", field="rates") from None
        except (ValueError, KeyError, TypeError):
            raise InvalidConfig(f"{path} has no measured rates of a machine", field="rates") from None
