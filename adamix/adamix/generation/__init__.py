"""Adapters of decoders that write text: token rows, beam search, the loss of reference texts, the metrics of NLG."""
