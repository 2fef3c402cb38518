"""Tokenizers of whole words: every word of a list is a token, and any other is unknown."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_DECODER_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")


def bert_words(words: Sequence[str]) -> Tokenizer:
    """`[PAD] [UNK] [CLS] [SEP]` are tokens 0 to 3, the words follow; texts and pairs are joined as BERT's are."""
    tokenizer = _of_words((*BERT_SPECIAL, *words), unknown="[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def pretrained_bert(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """The same as transformers has it."""
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def masked_words(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """For masked language models: with `[MASK]` as token 4, and punctuation apart from words."""
    special = (*BERT_SPECIAL, "[MASK]")
    tokenizer = _of_words((*special, *words), unknown="[UNK]")
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(list(special))
    names = {f"{name.strip('[]').lower()}_token": name for name in special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def decoder_words(words: Sequence[str], *, begins_texts: bool = False) -> PreTrainedTokenizerFast:
    """For decoders: `<pad> <unk> <s> </s>` come first. With `begins_texts`, `<s>` begins each text, as Llama's does."""
    tokenizer = _of_words((*_DECODER_SPECIAL, *words), unknown="<unk>")
    if begins_texts:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _of_words(vocabulary: Sequence[str], unknown: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer
