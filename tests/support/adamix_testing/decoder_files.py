"""Small random decoders as a server loads them: on disk, with a tokenizer whose words are numbers."""

from pathlib import Path

import torch

from adamix_testing.decoders import DECODERS, VOCABULARY
from adamix_testing.word_tokenizers import decoder_words

_NUM_SPECIAL = 4


def save_decoder(name: str, directory: Path) -> Path:
    """A family of `DECODERS`, the same weights with every call. Tokens from 4 on are the words `w4`, `w5`, …."""
    torch.manual_seed(0)
    DECODERS[name]().save_pretrained(directory)
    decoder_words([f"w{i}" for i in range(_NUM_SPECIAL, VOCABULARY)]).save_pretrained(directory)
    return directory
