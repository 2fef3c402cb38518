"""From source and target texts to the token rows and prompts of a causal language model.

The layout is that of the released code (its `gpt2_encode.py` with both of its flags), and part of what an adapter with
a `causal_lm` head means: training and decoding must agree on it.

    source, separator, " " + target, end of text

The separator is the tokenizer's beginning-of-text token, or its end-of-text token where it has no other (in GPT-2 they
are one). In front of the source stands what the tokenizer puts in front of any text. Knows tensors; neither models nor
what the targets are used for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from adamix.data import GenerationExample
from adamix.errors import InvalidConfig
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
class Prompt:
    """What an answer is generated after."""

    ids: tuple[int, ...]
    is_truncated: bool


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
    separator, end = _special(tokenizer)
    sources = _source_ids(tokenizer, [example.source for example in examples])
    rows: list[TargetRow] = []
    for example, source in zip(examples, sources, strict=True):
        texts = [f" {reference}" for reference in example.references]
        for answer in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            # Of a target that takes all the room, one token of the source and the separator are left before it.
            target = [*answer, end][: max_length - 2]
            kept = _cut(tokenizer, source, max_length - 1 - len(target))
            is_truncated = len(kept) < len(source) or len(target) <= len(answer)
            rows.append(TargetRow((*kept, separator, *target), len(kept) + 1, is_truncated))
    return rows


def prompts(tokenizer: PreTrainedTokenizerFast, sources: Sequence[str], *, max_tokens: int) -> list[Prompt]:
    """The prompts of sources, of at most `max_tokens` tokens: a longer source loses tokens from its beginning.

    Raises:
        InvalidConfig: the tokenizer has no end-of-text token.
    """
    separator, _ = _special(tokenizer)
    result = []
    for source in _source_ids(tokenizer, sources):
        kept = _cut(tokenizer, source, max_tokens - 1)
        result.append(Prompt((*kept, separator), len(kept) < len(source)))
    return result


def collate_prompts(chosen: Sequence[Prompt], pad_id: int) -> dict[str, Tensor]:
    """int64 `input_ids` and `attention_mask`, `[prompts, longest prompt]`, padded on the left: all end together."""
    shape = (len(chosen), max(len(prompt.ids) for prompt in chosen))
    ids = torch.full(shape, pad_id)
    mask = torch.zeros(shape, dtype=torch.int64)
    for index, prompt in enumerate(chosen):
        ids[index, -len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[index, -len(prompt.ids) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _special(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """The separator and the end of text."""
    end = tokenizer.eos_token_id
    if end is None:
        raise InvalidConfig("the backbone's tokenizer has no end-of-text token, which generation needs to stop")
    separator = tokenizer.bos_token_id
    return (end if separator is None else separator), end


def _source_ids(tokenizer: PreTrainedTokenizerFast, sources: Sequence[str]) -> list[list[int]]:
    # A tokenizer takes no empty list.
    found: list[list[int]] = tokenizer(list(sources), verbose=False)["input_ids"] if sources else []
    # Some tokenizers end every text; here the text goes on.
    return [ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids for ids in found]


def _cut(tokenizer: PreTrainedTokenizerFast, source: list[int], room: int) -> list[int]:
    """The last tokens of a source; the beginning of text, where the tokenizer sets one, stays in front."""
    if len(source) <= room:
        return source
    lead = source[:1] if room > 1 and source[0] == tokenizer.bos_token_id else []
    return lead + source[len(source) - room + len(lead) :]
