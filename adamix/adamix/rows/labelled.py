"""From labelled text to padded batches of token ids.

Knows a tokenizer and tensors; neither models nor what the targets are used for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from adamix.data import Example, TaskType
from adamix.errors import InvalidConfig, InvalidData
from adamix.texts import cut, kept


@dataclass(frozen=True)
class TokenRow:
    """One example as token ids, special tokens included.

    Attributes:
        type_ids: None where the backbone has none.
        read_at: the token whose state the head reads; None where that is the same for all rows, as its pooling says.
    """

    input_ids: tuple[int, ...]
    type_ids: tuple[int, ...] | None
    is_truncated: bool
    read_at: int | None = None

    def __len__(self) -> int:
        return len(self.input_ids)


def tokenize(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], *, max_length: int, has_types: bool
) -> list[TokenRow]:
    """Token rows of at most `max_length` tokens; a pair loses tokens from its longer text first.

    Args:
        has_types: the backbone tells the two texts of a pair apart by token types.

    Raises:
        InvalidConfig: `max_length` is below the number of special tokens around a text.
        InvalidData: the tokenizer makes nothing of a text. One that adds no special tokens may do so.
    """
    num_special = tokenizer.num_special_tokens_to_add(pair=any(example.pair is not None for example in examples))
    if num_special > max_length:
        raise InvalidConfig(f"max_length {max_length} is below the {num_special} special tokens", field="max_length")
    rows: list[TokenRow] = []
    for example in examples:
        # `verbose` off: the library would warn about every text that is about to be cut and counted here.
        text, pair = cut(example.text), None if example.pair is None else cut(example.pair)
        encoded = tokenizer(text, pair, verbose=False, return_token_type_ids=has_types)
        ids = encoded["input_ids"]
        is_too_long = len(ids) > max_length
        # The library's own truncation keeps what it cuts off in pieces, and joins those of a pair with one another.
        places = kept(encoded.sequence_ids(0), max_length) if is_too_long else range(len(ids))
        if not places:
            raise InvalidData(f"the backbone's tokenizer makes no token of the text {example.text[:40]!a}")
        types = tuple(encoded["token_type_ids"][place] for place in places) if has_types else None
        is_truncated = is_too_long or text is not example.text or pair is not example.pair
        rows.append(TokenRow(tuple(ids[place] for place in places), types, is_truncated))
    return rows


def collate(rows: Sequence[TokenRow], pad_id: int) -> dict[str, Tensor]:
    """int64 `input_ids`, `attention_mask` and, where rows have them, `token_type_ids`, all `[rows, longest row]`.

    Where rows say which token to read, also bool `target_mask` of the same shape, true at that token.
    """
    shape = (len(rows), max(len(row) for row in rows))
    ids = torch.full(shape, pad_id)
    mask = torch.zeros(shape, dtype=torch.int64)
    types = torch.zeros(shape, dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row.input_ids)
        mask[index, : len(row)] = 1
        if row.type_ids is not None:
            types[index, : len(row)] = torch.tensor(row.type_ids)
    batch = {"input_ids": ids, "attention_mask": mask}
    if rows[0].type_ids is not None:
        batch["token_type_ids"] = types
    if rows[0].read_at is not None:
        places = torch.tensor([[row.read_at] for row in rows])
        batch["target_mask"] = torch.arange(shape[1]) == places
    return batch


def target_tensor(examples: Sequence[Example], task_type: TaskType, num_labels: int) -> Tensor:
    """Class ids int64 `[N]`, multi-hot fp32 `[N, num_labels]`, or regression targets fp32 `[N]`."""
    if task_type == "classification":
        return torch.tensor([int(_number(e)) for e in examples])
    if task_type == "regression":
        return torch.tensor([float(_number(e)) for e in examples])
    targets = torch.zeros(len(examples), num_labels)
    for index, example in enumerate(examples):
        if isinstance(example.label, tuple):
            targets[index, list(example.label)] = 1.0
    return targets


def _number(example: Example) -> int | float:
    if isinstance(example.label, tuple):
        raise TypeError("a set of labels where one label was expected")
    return example.label
