"""Tokenizers that can spell any text in bytes, as those of decoders do: `<s>`, `<|end|>` and all bytes are tokens."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from adamix.prompts.vocabulary import Vocabulary

BEGIN, END = "<s>", "<|end|>"
BEGIN_ID, END_ID = 0, 1
# The token of the byte 0; the others follow.
FIRST_BYTE = 2


def byte_level(merges: Sequence[str] = ()) -> Tokenizer:
    """As GPT-2's: every byte has a character, and so has every text of `merges`, whatever bytes it has."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=_byte_of)
    vocabulary = {token: index for index, token in enumerate((BEGIN, END, *letters))}
    pairs: list[tuple[str, str]] = []
    for text in merges:
        word = "".join(letters[byte] for byte in text.encode())
        for length in range(2, len(word) + 1):
            pair = word[: length - 1], word[length - 1]
            if pair not in pairs:
                pairs.append(pair)
                vocabulary.setdefault(word[:length], len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(BEGIN, special=True), AddedToken(END, special=True)])
    return tokenizer


def byte_fallback(words: Sequence[str]) -> Tokenizer:
    """As Llama 2's: words with their spaces (`▁word`), and bytes (`<0x0A>`) for what has no word."""
    names = (BEGIN, END, *(f"<0x{value:02X}>" for value in range(256)), *words)
    vocabulary = {token: index for index, token in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=BEGIN, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(BEGIN, special=True), AddedToken(END, special=True)])
    return tokenizer


def write_files(directory: Path, tokenizer: Tokenizer, chat_template: str | None = None) -> Path:
    """`tokenizer.json` and `generation.json`, as an engine leaves them for front ends; the path of the first."""
    vocabulary = Vocabulary(
        bos_id=BEGIN_ID,
        eos_id=END_ID,
        eos_ids=(END_ID,),
        special_tokens={"bos_token": BEGIN, "eos_token": END},
        chat_template=chat_template,
    )
    (directory / "generation.json").write_text(vocabulary.to_json())
    path = directory / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def _byte_of(letter: str) -> int:
    """The byte that a letter of the alphabet stands for: printable ones are themselves, the rest come behind them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return ord(letter) if ord(letter) < 256 else rest[ord(letter) - 256]
