"""What of a decoder's configuration matters to whoever generates with it: the shape of keys and values, and positions.

Generation in a mixed batch computes each token once, at its own position. Whatever makes a token's keys depend on how
long its text, or another one, becomes later cannot be had that way. Knows neither weights nor adapters.
"""

from dataclasses import dataclass

from transformers import PreTrainedConfig

from adamix.errors import FailedPrecondition

# Rotary positions whose frequencies are one table, whatever is in the batch.
FIXED_ROPES = frozenset({"default", "linear", "llama3", "yarn"})


@dataclass(frozen=True)
class KvShape:
    """Keys and values of one token, and the queries that read them.

    Attributes:
        num_layers: that have any.
        num_heads: of queries.
        num_kv_heads: of keys and of values; each is read by `num_heads / num_kv_heads` heads of queries.
        head_size: features of each head.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "KvShape":
        """The shape of a decoder."""
        num_heads: int = config.num_attention_heads
        return cls(
            num_layers=config.num_hidden_layers,
            num_heads=num_heads,
            num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // num_heads,
        )

    @property
    def features(self) -> int:
        """Numbers that one token leaves in all layers, keys and values together."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size


def check_positions(config: PreTrainedConfig) -> None:
    """Refuse a decoder whose positions depend on more than the position.

    Raises:
        FailedPrecondition: its rotary positions are none of `FIXED_ROPES` (`ROPE_UNSUPPORTED`), or it has a bias of the
            distance in its attention (alibi).
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kind = str(rope.get("rope_type", "default"))
    if kind not in FIXED_ROPES:
        raise FailedPrecondition(
            f"rotary positions of type {kind!r} depend on the length of the text, and so on what is beside it in a "
            f"batch: texts cannot be generated with them; what can be served is {', '.join(sorted(FIXED_ROPES))}",
            reason="ROPE_UNSUPPORTED",
        )
    if getattr(config, "alibi", False):
        raise FailedPrecondition("attention with a bias of the distance (alibi) is not supported")
