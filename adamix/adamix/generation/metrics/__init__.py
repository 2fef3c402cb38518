"""Metrics of generated text against several references, in the conventions of the published data-to-text results.

Two styles decide how texts are prepared and which metrics are taken: `e2e` (the scripts of the E2E challenge) and
`webnlg` (GenerationEval; for DART too). Texts in, numbers out: nothing here knows a model, a tokenizer or a data set.
"""

from adamix.generation.metrics.scores import METRICS, STYLES, Style, score_generation

__all__ = ["METRICS", "STYLES", "Style", "score_generation"]
