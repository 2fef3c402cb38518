"""What a decoder's checkpoint says beside its `tokenizer.json`: tokens that begin and end texts, and its chat template.

It is read from the checkpoint once, with transformers (`adamix.backbones.backbone.export_generation`), and travels as
`generation.json`. Plain data; knows neither tokenizers nor templates.
"""

from pathlib import Path
from typing import Any

import msgspec

from adamix.errors import InvalidConfig
from adamix.files.manifest import PromptForm
from adamix.files.tensors import canonical_json


class Vocabulary(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The tokens that mean something of their own.

    Attributes:
        vocab_size: tokens that the model has a row for, which may be fewer than the tokenizer's; None if not known.
        bos_id: the tokenizer's beginning of text; None where it has none.
        eos_id: its end of text.
        eos_ids: the tokens at which the model itself stops, ascending: a checkpoint may name several.
        special_tokens: texts of the special tokens by the names that templates know, as `eos_token`.
        chat_template: in jinja2; None where the checkpoint has none.
        rules: sections of `tokenizer.json` (`pre_tokenizer`, …) that `AutoTokenizer` makes anew, as it has them; those
            that are not here are the file's. Texts and chats of models that were trained elsewhere are cut by these.
    """

    vocab_size: int | None = None
    bos_id: int | None = None
    eos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    special_tokens: dict[str, str] = {}
    chat_template: str | None = None
    rules: dict[str, Any] = {}

    @property
    def separator_id(self) -> int | None:
        """Between a source and its target: the beginning of text, or the end of text where there is no other."""
        return self.eos_id if self.bos_id is None else self.bos_id

    def ends(self, form: PromptForm) -> tuple[int, ...]:
        """The ids that end a text, ascending.

        A target that was trained here ends with the tokenizer's end of text alone. A text ends where the model of the
        checkpoint stops; a turn of a chat at the tokenizer's end of text as well, which some checkpoints leave out.
        """
        own = () if self.eos_id is None else (self.eos_id,)
        if form == "source":
            return own
        if form == "text":
            return self.eos_ids or own
        return tuple(sorted({*self.eos_ids, *own}))

    def to_json(self) -> str:
        """Canonical JSON: equal values give equal text."""
        return canonical_json(msgspec.to_builtins(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> "Vocabulary":
        """What `to_json` wrote. Raises InvalidConfig if it did not."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidConfig(f"generation.json: {str(error)[:200]}") from None

    @classmethod
    def read(cls, path: Path) -> "Vocabulary":
        """Of a `generation.json`. Raises InvalidConfig; OSError where it cannot be read."""
        return cls.from_json(path.read_bytes())
