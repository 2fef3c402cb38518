"""The language-model head of a checkpoint: where each family keeps it, and whether a checkpoint has it.

A head here maps hidden states to scores over the vocabulary: of a decoder its output embedding, of a masked language
model the transform before it as well. It belongs to the backbone and is never trained. Knows neither files nor
adapters.
"""

from collections.abc import Collection
from typing import cast

from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from adamix.backbones.sites import Family
from adamix.errors import InvalidConfig

# Where a masked language model of transformers has its head; DistilBERT's is in parts.
_MASKED_HEADS = {"bert": "cls", "roberta": "lm_head", "xlm-roberta": "lm_head"}


class DistilBertHead(nn.Module):
    """DistilBERT's masked-language-model head, whose parts lie apart in the model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.transform = model.get_submodule("vocab_transform")
        self.activation = model.get_submodule("activation")
        self.norm = model.get_submodule("vocab_layer_norm")
        self.projector = model.get_submodule("vocab_projector")

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., H] -> [..., V]`."""
        logits: Tensor = self.projector(self.norm(self.activation(self.transform(hidden))))
        return logits


def model_class(family: Family) -> type[AutoModelForCausalLM | AutoModelForMaskedLM]:
    """The class of transformers that loads a checkpoint of this family with its head."""
    return AutoModelForCausalLM if family.is_decoder else AutoModelForMaskedLM


def head_of(model: PreTrainedModel, family: Family) -> nn.Module:
    """The head of a language model, `[N, H] -> [N, V]`; its weights may be tied to the body's embedding."""
    if family.is_decoder:
        return cast("nn.Module", model.get_output_embeddings())
    path = _MASKED_HEADS.get(family.model_type)
    return DistilBertHead(model) if path is None else model.get_submodule(path)


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """The body under a language model's head."""
    return cast("PreTrainedModel", model.base_model)


def check_head(model: PreTrainedModel, missing: Collection[str], name: str) -> None:
    """Raise InvalidConfig if the checkpoint lacked weights of the head: they would be random.

    Args:
        missing: what the checkpoint lacked, as transformers reports it; weights tied to others that it had are not.
        name: the backbone's, for the message.
    """
    body = f"{model.base_model_prefix}."
    lacking = sorted(key for key in missing if not key.startswith(body))
    if lacking:
        raise InvalidConfig(
            f"the checkpoint of {name!r} has no language-model head ({lacking[0]} is missing): generation and cloze "
            "need a checkpoint that was saved with one"
        )


def give_body(model: PreTrainedModel, body: PreTrainedModel) -> None:
    """Let a language model stand on another body of equal weights, and tie its head to that."""
    setattr(model, model.base_model_prefix, body)
    model.config = body.config
    model.tie_weights()
