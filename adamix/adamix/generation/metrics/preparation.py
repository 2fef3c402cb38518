"""Texts as words, in the three ways that published scores use."""

import re
from collections.abc import Callable
from functools import cache

# English clitics, which the Penn treebank takes for words of their own; then words with inner hyphens, strokes and
# points, numbers with their separators, and single symbols.
_CLITIC = r"n['’]t|['’](?:s|m|d|ll|re|ve)"
_PENN = re.compile(rf"(?:{_CLITIC})(?!\w)|\w+(?:[-/.]\w+|(?<=\d)[,:]\d+)*|[^\w\s]")
_BEFORE_CLITIC = re.compile(rf"(?<=\w)(?=(?:{_CLITIC})(?!\w))|(?<=\bcan)(?=not\b)")
# Brackets are not among them: the scripts mean to remove those as well, but look for their capitalised names.
_PUNCTUATION = frozenset("'‘’`\"“”.?!,:;-–—…")


def words_13a(text: str) -> list[str]:
    """Words of mteval-v13a in lower case: what NIST counts, and BLEU inside sacrebleu."""
    return _tokenizer_13a()(text.lower()).split()


@cache
def _tokenizer_13a() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    make: Callable[[], Callable[[str], str]] = Tokenizer13a  # its constructor is not annotated
    return make()


def split_at_symbols(text: str) -> str:
    """Every character that is no letter, digit or underscore stands alone, as LoRA and AdaMix write for WebNLG."""
    return " ".join(" ".join(re.split(r"(\W)", text)).split())


def penn_words(text: str) -> list[str]:
    """Words in lower case much like the Penn treebank's, without punctuation: what ROUGE-L and CIDEr count.

    The scripts of E2E call Stanford's tokenizer, a Java program, for them. This gives the same for plain English,
    but for the names of brackets and pounds, and for the point of an abbreviation.
    """
    return [word for word in _PENN.findall(_BEFORE_CLITIC.sub(" ", text.lower())) if word not in _PUNCTUATION]
