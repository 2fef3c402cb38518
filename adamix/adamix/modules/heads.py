"""From hidden states to logits: pooling, an optional dense layer, the output projection.

`TaskModel` is a backbone's body (with whatever was inserted at its sites) and a head on top: what training optimises
and evaluation runs. `LanguageModel` is the same with the checkpoint's own head over the vocabulary, read at some tokens
of each row. Neither knows how rows are made from text, nor what its logits are used for.

Shapes: N rows, L tokens, H hidden size, C labels, T tokens that are read, V vocabulary.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adamix.config import HeadConfig
from adamix.data import GenerationData, TaskData
from adamix.files.manifest import HeadSpec, label_map
from adamix_kernels import dispatch

_INIT_STD = 0.02  # BERT's, as the release's heads are initialised


class Head(nn.Module):
    """`out_proj(act(dense(pool(h))))`, dropout before each linear; without its dense layer `out_proj(pool(h))`.

    An embedding head has no `out_proj` of its own; its file may bring one.

    Args:
        spec: what the head is made of; `dense="backbone"` needs `pooler`.
        pooler: the backbone's own, frozen; `[N, H] -> [N, H]` including its activation.
    """

    def __init__(self, spec: HeadSpec, hidden_size: int, pooler: nn.Module | None, dropout: float = 0.0) -> None:
        super().__init__()
        self.pooling = spec.pooling
        self.dense = nn.Linear(hidden_size, hidden_size) if spec.dense == "own" else None
        self.activation = dispatch.activation(spec.activation or "identity")
        self.pooler = pooler if spec.dense == "backbone" else None
        self.dropout = nn.Dropout(dropout)
        self.out_proj = None if spec.type == "embedding" else nn.Linear(hidden_size, spec.num_labels)

    @property
    def linears(self) -> dict[str, nn.Linear]:
        """The layers that are trained and saved, by their names in a file."""
        layers = {"dense": self.dense, "out_proj": self.out_proj}
        return {name: layer for name, layer in layers.items() if layer is not None}

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the weights anew: N(0, 0.02), zero biases."""
        for linear in self.linears.values():
            nn.init.normal_(linear.weight, std=_INIT_STD, generator=generator)
            nn.init.zeros_(linear.bias)

    def num_trained(self) -> int:
        """Parameters that are trained and saved: the backbone's pooler is neither."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits `[N, C]` in fp32 (or autocast's dtype) from hidden states `[N, L, H]` and the token mask `[N, L]`.

        Of an embedding head the vectors `[N, H]`, or as wide as its projection; not normalised.
        """
        features = pool(hidden, mask, self.pooling)
        if self.pooler is not None:
            features = self.pooler(features.to(hidden.dtype)).float()
        if self.dense is not None:
            features = self.activation(self.dense(self.dropout(features)))
        if self.out_proj is None:
            return features
        logits: Tensor = self.out_proj(self.dropout(features))
        return logits


class ClozeHead(nn.Module):
    """The language model's scores of one token for each label, where each row is read; nothing here is trained.

    Args:
        lm_head: `[N, H] -> [N, V]`, frozen.
        tokens: the token id of each label.
    """

    tokens: Tensor

    def __init__(self, lm_head: nn.Module, tokens: Sequence[int]) -> None:
        super().__init__()
        self.lm_head = lm_head
        self.register_buffer("tokens", torch.tensor(tokens), persistent=False)

    @property
    def linears(self) -> dict[str, nn.Linear]:
        """None: the head is the backbone's own."""
        return {}

    def num_trained(self) -> int:
        return 0

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Logits `[N, C]` from hidden states `[N, L, H]` and a bool `[N, L]` that is true at one token of each row."""
        logits: Tensor = self.lm_head(hidden[mask])[:, self.tokens]
        return logits


class TaskModel(nn.Module):
    """A body and a head: padded token ids in, logits out.

    Args:
        first_position: position id of a row's first token. Positions count up from it and are given to the body, as
            the server does: RoBERTa's own count passes over padding tokens, also those that a text spells out.
    """

    def __init__(self, body: nn.Module, head: Head | ClozeHead, first_position: int) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self._first_position = first_position

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits `[N, C]` of int64 ids `[N, L]`; the mask is 1 on tokens and 0 on padding, which is on the right.

        `target_mask` is for heads that read one token of each row, where it is true.
        """
        hidden = _hidden_states(self.body, self._first_position, input_ids, attention_mask, token_type_ids)
        logits: Tensor = self.head(hidden, attention_mask if target_mask is None else target_mask)
        return logits


class LanguageModel(nn.Module):
    """A body and a frozen language-model head: padded token ids in, scores over the vocabulary out.

    Args:
        lm_head: `[T, H] -> [T, V]`. It runs on the tokens that are read and on no others: scores at every token of a
            batch would be its largest tensor by far.
        first_position: as of `TaskModel`.
    """

    def __init__(self, body: nn.Module, lm_head: nn.Module, first_position: int) -> None:
        super().__init__()
        self.body = body
        self.lm_head = lm_head
        self._first_position = first_position

    def forward(self, input_ids: Tensor, attention_mask: Tensor, target_mask: Tensor) -> Tensor:
        """Logits `[T, V]` at the tokens of `target_mask`, bool `[N, L]`, row after row; the rest as of `TaskModel`."""
        hidden = _hidden_states(self.body, self._first_position, input_ids, attention_mask)
        logits: Tensor = self.lm_head(hidden[target_mask])
        return logits


def shared_copy(body: nn.Module) -> nn.Module:
    """A second tree of modules over the same parameters and buffers.

    Sites can be put into it and its mode changed while the original stays as it was; no weight is copied.
    """
    tensors = (*body.parameters(), *body.buffers())
    return copy.deepcopy(body, {id(tensor): tensor for tensor in tensors})


def remove_dropout(body: nn.Module) -> None:
    """Let a transformers body drop nothing in training, in place."""
    for module in body.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Where attention is given the probability as a number.
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 - a number, where modules declare modules


def recompute_activations(body: nn.Module) -> None:
    """Let a transformers body keep no activations of its layers, but compute them anew in the backward pass."""
    # The name that came with 5.22 and the one it replaces.
    enable = getattr(body, "activation_checkpointing_enable", None) or body.gradient_checkpointing_enable
    enable({"use_reentrant": False})  # type: ignore[operator]  # a method of PreTrainedModel


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One fp32 vector per row, `[N, H]`: the state of its first (`cls`) or `last` token, or the mean of all."""
    if pooling == "cls":
        return hidden[:, 0].float()
    if pooling == "last":
        ends = mask.sum(1) - 1
        return hidden[torch.arange(len(hidden), device=hidden.device), ends].float()
    weights = mask.unsqueeze(-1).float()
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)


def _hidden_states(
    body: nn.Module,
    first_position: int,
    input_ids: Tensor,
    attention_mask: Tensor,
    token_type_ids: Tensor | None = None,
) -> Tensor:
    """`[N, L, H]`, each row's positions counted up from the first."""
    positions = torch.arange(first_position, first_position + input_ids.shape[1], device=input_ids.device)
    inputs = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": positions.expand_as(input_ids),
    }
    if token_type_ids is not None:
        inputs["token_type_ids"] = token_type_ids
    hidden: Tensor = body(**inputs).last_hidden_state
    return hidden


def describe_head(config: HeadConfig, data: TaskData | GenerationData) -> HeadSpec:
    """The manifest's description of the head for some data: their task type and labels, or a language model's."""
    if isinstance(data, GenerationData):
        return HeadSpec(type="causal_lm", pooling="none")
    is_regression = data.task_type == "regression"
    return HeadSpec(
        type=data.task_type,
        pooling=config.pooling,
        dense=config.dense,
        num_labels=1 if is_regression else len(data.labels),
        id2label=None if is_regression else label_map(list(data.labels)),
        activation=config.activation if config.dense == "own" else None,
        threshold=config.threshold if data.task_type == "multilabel" else None,
        clip=config.clip if is_regression else None,
    )
