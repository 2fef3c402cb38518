"""From source and target texts to the token rows and prompts of a causal language model.

The layout is that of the released code (its `gpt2_encode.py` with both of its flags), and part of what an adapter with
a `causal_lm` head means: training and decoding must agree on it.

    source, separator, " " + target, end of text

Up to the separator it is a prompt, whose ids are `adamix.prompts`'. Knows tensors; neither models nor what the targets
are used for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from adamix.data import GenerationExample
from adamix.prompts.prompts import Prompt, Prompts
from adamix.prompts.vocabulary import Vocabulary
from adamix.rows.labelled import TokenRow, collate


@dataclass(frozen=True)
class TargetRow:
    """A prompt (source and separator) with one target behind it, the end of text included.

    Attributes:
        ids: prompt and target.
        num_prompt: tokens of the prompt, at least 1.
    """

    ids: tuple[int, ...]
    num_prompt: int
    is_truncated: bool

    @property
    def targets(self) -> tuple[int, ...]:
        return self.ids[self.num_prompt :]

    @property
    def inputs(self) -> TokenRow:
        """What the model reads: all but the last token, after which nothing is predicted."""
        return TokenRow(self.ids[:-1], None, self.is_truncated)


@dataclass(frozen=True)
class TargetRows(Dataset[int]):
    """Training rows of a language model. Items are row numbers; `batch` turns numbers into tensors."""

    rows: Sequence[TargetRow]
    pad_id: int

    @property
    def lengths(self) -> list[int]:
        """Tokens that the model reads of each row."""
        return [len(row.ids) - 1 for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return index

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """`collate`'s tensors; `target_mask`, bool `[rows, longest row]`, true where the next token is a target; and
        these `targets`, int64 `[N]`, row after row."""
        chosen = [self.rows[index] for index in indices]
        batch = collate([row.inputs for row in chosen], self.pad_id)
        mask = torch.zeros(batch["input_ids"].shape, dtype=torch.bool)
        for index, row in enumerate(chosen):
            mask[index, row.num_prompt - 1 : len(row.ids) - 1] = True
        targets = torch.tensor([token for row in chosen for token in row.targets])
        return {**batch, "target_mask": mask, "targets": targets}


def target_rows(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[GenerationExample], *, max_length: int
) -> list[TargetRow]:
    """A row for each source and reference, of at most `max_length` tokens.

    A row that is too long loses tokens from the beginning of its source, as the released code cuts prompts; where the
    target alone is too long, it loses its end, and with it the end of text.

    Raises:
        InvalidConfig: the tokenizer has no end-of-text token.
    """
    builder = _prompts(tokenizer)
    separator, end = builder.special()
    sources = builder.source_ids([example.source for example in examples])
    rows: list[TargetRow] = []
    for example, source in zip(examples, sources, strict=True):
        for answer in builder.target_ids(example.references):
            # Of a target that takes all the room, one token of the source and the separator are left before it.
            target = [*answer, end][: max_length - 2]
            kept = builder.cut(source, max_length - 1 - len(target))
            is_truncated = len(kept) < len(source) or len(target) <= len(answer)
            rows.append(TargetRow((*kept, separator, *target), len(kept) + 1, is_truncated))
    return rows


def prompts(tokenizer: PreTrainedTokenizerFast, sources: Sequence[str], *, max_tokens: int) -> list[Prompt]:
    """The prompts of sources, of at most `max_tokens` tokens: a longer source loses tokens from its beginning.

    Raises:
        InvalidConfig: the tokenizer has no end-of-text token.
    """
    return _prompts(tokenizer).sources(sources, max_tokens)


def collate_prompts(chosen: Sequence[Prompt], pad_id: int) -> dict[str, Tensor]:
    """int64 `input_ids` and `attention_mask`, `[prompts, longest prompt]`, padded on the left: all end together."""
    shape = (len(chosen), max(len(prompt.ids) for prompt in chosen))
    ids = torch.full(shape, pad_id)
    mask = torch.zeros(shape, dtype=torch.int64)
    for index, prompt in enumerate(chosen):
        ids[index, -len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[index, -len(prompt.ids) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _prompts(tokenizer: PreTrainedTokenizerFast) -> Prompts:
    vocabulary = Vocabulary(bos_id=tokenizer.bos_token_id, eos_id=tokenizer.eos_token_id)
    return Prompts(tokenizer.backend_tokenizer, vocabulary)
