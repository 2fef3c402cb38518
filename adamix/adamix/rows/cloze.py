"""Classification by filling a gap: a text goes into a template, and the language model's word for the gap is its label.

The verbaliser names one token for each label; the logits are the language model's scores of these tokens alone, at the
template's mask or, of a decoder, after its last token (Schick and Schuetze, EACL 2021; the paper's few-shot table is in
this setting, with the template and words of the task). Knows tokenizers; no model and no training: the head itself is
`heads.ClozeHead`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from adamix.config import ClozeConfig
from adamix.data import Example, TaskData
from adamix.errors import InvalidConfig, InvalidData
from adamix.files.manifest import HeadSpec, label_map
from adamix.rows.labelled import TokenRow
from adamix.texts import cut

# For single texts and for pairs, after Gao et al. (ACL 2021). A decoder's end where the word would be.
MASKED_TEMPLATES = ("{text} It was {mask}.", "{text} ? {mask} , {pair}")
NEXT_TOKEN_TEMPLATES = ("{text} It was", "{text} {pair} Answer:")

_MASK = "{mask}"
_PLACEHOLDER = re.compile(r"\{(?:text|pair|mask)\}")


def head_spec(config: ClozeConfig, tokenizer: PreTrainedTokenizerFast, data: TaskData, *, is_decoder: bool) -> HeadSpec:
    """The manifest's description of a cloze head for a data set.

    Raises:
        InvalidConfig: the template does not suit the data or the backbone; or a word is not one token, with its
            pieces.
        InvalidData: the data are no classification.
    """
    if data.task_type != "classification":
        raise InvalidData(f"a cloze head classifies, and {data.name} is a {data.task_type} task")
    template = _template(
        config, tokenizer, has_pairs=any(example.pair is not None for example in data.examples), is_decoder=is_decoder
    )
    words = dict(config.words)
    unknown = sorted(set(words) - set(data.labels))
    if unknown:
        raise InvalidConfig(
            f"the verbalizer has a word for {unknown[0][:60]!r}, which is none of the labels "
            f"{', '.join(data.labels)[:200]}",
            field="words",
        )
    tokens: dict[int, str] = {}
    for label in data.labels:
        token = _token(template, tokenizer, label, words.get(label, label))
        if token in tokens:
            raise InvalidConfig(
                f"the words of {tokens[token]!r} and {label!r} are the same token: give one of them another word",
                field="words",
            )
        tokens[token] = label
    return HeadSpec(
        type="cloze",
        pooling="last" if is_decoder else "none",
        num_labels=len(data.labels),
        id2label=label_map(list(data.labels)),
        template=template,
        verbalizer=tuple(tokens),
    )


def token_rows(
    spec: HeadSpec,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Example],
    *,
    max_length: int,
    has_types: bool,
) -> list[TokenRow]:
    """Examples in the template, as rows of at most `max_length` tokens; all of the template stays in each.

    A pair loses tokens from its longer text first. Only the template's mask is read, also where a text spells out
    another one.

    Raises:
        InvalidConfig: `max_length` has no room for the template, or the tokenizer does not know its mask.
        InvalidData: pairs where the template has one text, or the other way round.
    """
    rows = []
    for example in examples:
        if (example.pair is None) != ("{pair}" not in (spec.template or "")):
            raise InvalidData(
                f"the template {spec.template!r} does not suit {'single texts' if example.pair is None else 'pairs'}"
            )
        rows.append(_row(spec, tokenizer, example, max_length, has_types=has_types))
    return rows


def _template(config: ClozeConfig, tokenizer: PreTrainedTokenizerFast, *, has_pairs: bool, is_decoder: bool) -> str:
    default = (NEXT_TOKEN_TEMPLATES if is_decoder else MASKED_TEMPLATES)[has_pairs]
    template = default if config.template is None else config.template
    if ("{pair}" in template) != has_pairs:
        raise InvalidConfig(
            f"the template {template!r} has {'no ' if has_pairs else 'a '}{{pair}}, and the data have "
            f"{'two texts' if has_pairs else 'one text'} in each row",
            field="template",
        )
    if is_decoder:
        before, _, after = template.partition(_MASK)
        if _PLACEHOLDER.search(after):
            raise InvalidConfig(
                "a decoder predicts what comes next: put {mask} behind {text} and {pair} in the template",
                field="template",
            )
        # What follows the word is never read; a space at the end would be the beginning of the word's own token.
        return before.rstrip()
    if _MASK not in template:
        raise InvalidConfig("the template has no {mask}, which a masked language model fills", field="template")
    if tokenizer.mask_token is None:
        raise InvalidConfig("the backbone's tokenizer has no mask token: use the plain head", field="template")
    return template


def _token(template: str, tokenizer: PreTrainedTokenizerFast, label: str, word: str) -> int:
    """The one token that a word is where it stands in the template."""
    before, _, after = template.partition(_MASK) if _MASK in template else (f"{template} ", "", "")
    before, after = _PLACEHOLDER.split(before)[-1], _PLACEHOLDER.split(after)[0]
    start, end = len(before), len(before) + len(word)
    encoded = tokenizer(before + word + after, add_special_tokens=False, return_offsets_mapping=True)
    ids = [
        token
        for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        if first < end and last > start
    ]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        pieces = " ".join(tokenizer.convert_ids_to_tokens(ids))
        raise InvalidConfig(
            f"the word {word[:60]!r} for the label {label[:60]!r} is not one token of the backbone but "
            f"{pieces[:100]!r}: give another word with --verbalizer",
            field="words",
        )
    return int(ids[0])


def _row(
    spec: HeadSpec, tokenizer: PreTrainedTokenizerFast, example: Example, max_length: int, *, has_types: bool
) -> TokenRow:
    whole = {"{text}": example.text, "{pair}": example.pair or ""}
    texts = {name: cut(text) for name, text in whole.items()}
    encoded, read_at = _encode(spec, tokenizer, texts, has_types=has_types)
    is_truncated = len(encoded["input_ids"]) > max_length or texts != whole
    while len(encoded["input_ids"]) > max_length:
        surplus = len(encoded["input_ids"]) - max_length
        texts = _shortened(tokenizer, texts, surplus)
        encoded, read_at = _encode(spec, tokenizer, texts, has_types=has_types)
    types = tuple(encoded["token_type_ids"]) if has_types else None
    return TokenRow(tuple(encoded["input_ids"]), types, is_truncated, read_at)


def _encode(
    spec: HeadSpec, tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, str], *, has_types: bool
) -> tuple[Any, int]:
    """The template with these texts in it, and the place of the token to read: its mask, or else the last one."""
    parts, mask_at = [], None
    template = spec.template or ""
    end = 0
    for match in _PLACEHOLDER.finditer(template):
        parts.append(template[end : match.start()])
        if match[0] == _MASK:
            mask_at = sum(map(len, parts))
        parts.append(str(tokenizer.mask_token) if match[0] == _MASK else texts[match[0]])
        end = match.end()
    # `verbose` off: the library would warn about every text that is about to be cut and counted.
    encoded = tokenizer("".join([*parts, template[end:]]), verbose=False, return_token_type_ids=has_types)
    ids = encoded["input_ids"]
    if mask_at is None:
        # Some tokenizers end every text; here the text goes on.
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
            encoded = {name: values[:-1] for name, values in encoded.items()}
        if not ids:
            raise InvalidData(f"the backbone's tokenizer makes no token of the text {texts['{text}'][:40]!a}")
        return encoded, len(encoded["input_ids"]) - 1
    read_at = encoded.char_to_token(mask_at)
    if read_at is None or ids[read_at] != tokenizer.mask_token_id:
        raise InvalidConfig("the backbone's tokenizer does not find the mask of the template", field="template")
    return encoded, read_at


def _shortened(tokenizer: PreTrainedTokenizerFast, texts: Mapping[str, str], surplus: int) -> dict[str, str]:
    """The texts without some tokens at their ends, the longer one's first."""
    encoded = {
        name: tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        for name, text in texts.items()
    }
    longer, shorter = sorted(texts, key=lambda name: -len(encoded[name]))
    room = len(encoded[longer]) + len(encoded[shorter]) - surplus
    if room < 0 or not encoded[longer]:
        raise InvalidConfig("max_length has no room for the template and a text", field="max_length")
    kept_shorter = min(len(encoded[shorter]), room // 2)
    kept = {shorter: kept_shorter, longer: room - kept_shorter}
    return {name: _beginning(texts[name], encoded[name], count) for name, count in kept.items()}


def _beginning(text: str, offsets: Sequence[tuple[int, int]], count: int) -> str:
    """The text of its first tokens; of a character that is several tokens, all or nothing.

    Where there are more tokens at least one character goes, so that cutting comes to an end.
    """
    if count >= len(offsets):
        return text
    end = min(offsets[count - 1][1], offsets[count][0]) if count else 0
    return text[: min(end, len(text) - 1)]
