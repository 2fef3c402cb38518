"""What a checkpoint says of prompts and of where texts end, as transformers reads it.

Knows checkpoints; the value that comes of one is read by processes that do not load transformers.
"""

import json
import logging
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast

from adamix.files.manifest import MAX_CHAT_TEMPLATE_BYTES
from adamix.prompts.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_SECTIONS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor")


def of_checkpoint(
    source: str, config: PreTrainedConfig, file: PreTrainedTokenizerFast, auto: PreTrainedTokenizerFast
) -> Vocabulary:
    """A checkpoint's vocabulary.

    Args:
        source: its directory or hub id.
        file: its tokenizer by the rules of `tokenizer.json`.
        auto: as `AutoTokenizer` makes it.
    """
    return Vocabulary(
        vocab_size=config.vocab_size,
        bos_id=file.bos_token_id,
        eos_id=file.eos_token_id,
        eos_ids=_eos_ids(source, config),
        special_tokens={name: str(token) for name, token in auto.special_tokens_map.items()},
        chat_template=_chat_template(auto),
        rules=_rules(file, auto, config.vocab_size),
    )


def _eos_ids(source: str, config: PreTrainedConfig) -> tuple[int, ...]:
    """The tokens at which transformers' own `generate` stops, ascending."""
    try:
        found = GenerationConfig.from_pretrained(source).eos_token_id
    except (OSError, ValueError):  # there is no file of its own
        found = GenerationConfig.from_model_config(config).eos_token_id
    ids = found if isinstance(found, list) else [] if found is None else [found]
    return tuple(sorted({token for token in ids if 0 <= token < config.vocab_size}))


def _chat_template(auto: PreTrainedTokenizerFast) -> str | None:
    """The one that is used where none is named."""
    found = auto.chat_template
    template: str | None = found.get("default") if isinstance(found, dict) else found
    if template is not None and len(template.encode()) > MAX_CHAT_TEMPLATE_BYTES:
        log.warning("a chat template of %d bytes is left out: it is too long", len(template.encode()))
        return None
    return template


def _rules(file: PreTrainedTokenizerFast, auto: PreTrainedTokenizerFast, vocab_size: int) -> dict[str, Any]:
    """Sections that `auto` has otherwise than the file; of the model the entries."""
    written, made = (json.loads(tokenizer.backend_tokenizer.to_str()) for tokenizer in (file, auto))
    # It may add tokens that the file does not have, and the model no row for.
    made["added_tokens"] = [token for token in made["added_tokens"] if token["id"] < vocab_size]
    rules = {name: made[name] for name in _SECTIONS if made[name] != written[name]}
    model = {name: value for name, value in made["model"].items() if value != written["model"].get(name)}
    return rules | ({"model": model} if model else {})
