"""How well a decoder with an adapter predicts reference texts, each token from those before it.

Nothing is generated, and scores over the vocabulary exist for the target tokens of one batch at a time. Knows neither
routes nor metrics of texts.

Shapes: N rows, L tokens, T target tokens of a batch, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch.nn.functional as F
from torch import Tensor, device, nn
from transformers import PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone
from adamix.data import GenerationData
from adamix.errors import FailedPrecondition, InvalidData
from adamix.files.adapter_file import AdapterFile, check_backbone
from adamix.modules.attach import insert_adapter
from adamix.modules.heads import LanguageModel, shared_copy
from adamix.rows.targets import TargetRows, target_rows

# exp of anything larger is infinite.
_MAX_EXPONENT = 700.0


@dataclass(frozen=True)
class TokenBatch:
    """Rows that run together.

    Attributes:
        indices: their numbers.
        inputs: int64 ids and mask `[N, L]`, and the bool mask `[N, L]` of the tokens whose next one is a target.
        targets: int64 `[T]`, row after row.
    """

    indices: list[int]
    inputs: dict[str, Tensor]
    targets: Tensor


@dataclass(frozen=True)
class References:
    """The reference texts of a data set as an adapter reads them: one row for each source and reference.

    Attributes:
        counts: how many rows each source has, in the order of the data.
    """

    rows: TargetRows
    counts: tuple[int, ...]

    @property
    def truncated(self) -> int:
        """Sources that were cut, or one of whose references was."""
        rows = iter(self.rows.rows)
        return sum(sum(row.is_truncated for row in islice(rows, count)) > 0 for count in self.counts)

    def batches(self, batch_size: int, device: device) -> Iterator[TokenBatch]:
        """All rows, longest first: little padding, and what does not fit into memory shows at once."""
        lengths = self.rows.lengths
        order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            inputs = {name: tensor.to(device) for name, tensor in self.rows.batch(indices).items()}
            targets = inputs.pop("targets")
            yield TokenBatch(indices, inputs, targets)


def read_references(tokenizer: PreTrainedTokenizerFast, data: GenerationData, max_length: int) -> References:
    """The rows of a data set, of at most `max_length` tokens.

    Raises:
        InvalidData: there are none.
        InvalidConfig: the tokenizer has no end-of-text token.
    """
    if not data.examples:
        raise InvalidData(f"{data.name} has no rows to evaluate")
    rows = target_rows(tokenizer, data.examples, max_length=max_length)
    counts = tuple(len(example.references) for example in data.examples)
    return References(TargetRows(rows, tokenizer.pad_token_id or 0), counts)


@dataclass
class TokenTally:
    """Sums over target tokens, batch by batch."""

    loss: float = field(default=0.0, init=False)
    hits: int = field(default=0, init=False)
    count: int = field(default=0, init=False)

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Count fp32 logits `[T, V]` of targets `[T]`."""
        self.add_losses(F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1), targets)

    def add_losses(self, losses: Tensor, likeliest: Tensor, targets: Tensor) -> None:
        """Count `-log p` of each target, fp `[T]`, and whether the likeliest token `[T]` is the target."""
        self.loss += float(losses.double().sum())
        self.hits += int((likeliest == targets).sum())
        self.count += len(targets)

    def metrics(self) -> dict[str, float]:
        """Mean loss in nats a token, its exponential, and the share of tokens that are the likeliest."""
        mean = self.loss / self.count
        return {
            "loss": mean,
            "perplexity": math.exp(min(mean, _MAX_EXPONENT)),
            "token_accuracy": self.hits / self.count,
        }


def language_model(
    adapter: AdapterFile, backbone: Backbone, replace: Callable[[str, nn.Linear], nn.Module] | None = None
) -> LanguageModel:
    """The backbone's body with this adapter in place under its own head, in evaluation mode; the backbone is untouched.

    Args:
        replace: as of `modules.attach.attach`.

    Raises:
        as `check_writer`.
    """
    lm_head = check_writer(adapter, backbone)
    body = shared_copy(backbone.model)
    insert_adapter(body, adapter, replace)
    model = LanguageModel(body, shared_copy(lm_head), backbone.first_position)
    return model.to(next(backbone.model.parameters()).device).eval()


def check_writer(adapter: AdapterFile, backbone: Backbone) -> nn.Module:
    """The head of the backbone's language model, if the adapter is one for it.

    Raises:
        InvalidAdapter: the adapter does not fit the backbone.
        FailedPrecondition: the adapter's head is no language model, or the backbone was loaded without one.
    """
    if adapter.manifest.head.type != "causal_lm":
        raise FailedPrecondition(f"an adapter with a head of type {adapter.manifest.head.type} generates no text")
    if backbone.lm_head is None or not backbone.family.is_decoder:
        raise FailedPrecondition(f"{backbone.spec.label} was loaded without a language model that generates text")
    check_backbone(adapter, backbone.spec)
    return backbone.lm_head
