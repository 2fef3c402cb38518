"""Measure a merged adapter on generation data: how well it predicts the references, and the texts it writes itself."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone
from adamix.data import GenerationData
from adamix.evaluation.labelled import DEFAULT_BATCH_SIZE
from adamix.files.adapter_file import AdapterFile
from adamix.generation import beam_search
from adamix.generation.decoding import Decoding
from adamix.generation.metrics import score_generation


@dataclass(frozen=True)
class TextEvaluation:
    """What an adapter wrote for one data set.

    Attributes:
        metrics: those of `beam_search.token_metrics`, then those of the texts (`score_generation`).
        rows: sources.
        truncated: of these, sources that were cut.
        unfinished: texts that reached the limit of tokens before an end.
        is_synthetic: a program wrote the data; the metrics say nothing of texts by people.
        predictions: a text for each source.
        warnings: a sentence for each metric that was left out.
    """

    metrics: dict[str, float]
    rows: int
    truncated: int
    unfinished: int
    is_synthetic: bool
    predictions: list[str]
    warnings: list[str]


def evaluate_texts(
    adapter: AdapterFile,
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    data: GenerationData,
    decoding: Decoding | None = None,
    *,
    style: str = "e2e",
    batch_size: int = DEFAULT_BATCH_SIZE,
    on_rows: Callable[[int], None] | None = None,
) -> TextEvaluation:
    """Generate a text for every source, and score all of them against their references.

    Args:
        decoding: by default the paper's.
        style: how texts are prepared and which metrics are taken, see `score_generation`.
        batch_size: rows per forward pass; every source takes as many as there are beams.
        on_rows: called after each batch with the number of sources it had.

    Raises:
        As `beam_search.generate` and `score_generation`; InvalidData: no rows.
    """
    decoding = decoding or Decoding()
    tokens = beam_search.token_metrics(adapter, backbone, tokenizer, data, batch_size=batch_size)
    sources = [example.source for example in data.examples]
    at_once = max(1, batch_size // decoding.num_beams)
    generated = beam_search.generate(
        adapter, backbone, tokenizer, sources, decoding, batch_size=at_once, on_rows=on_rows
    )
    warnings: list[str] = []
    references = [example.references for example in data.examples]
    scores = score_generation(generated.texts, references, style=style, on_warning=warnings.append)
    return TextEvaluation(
        metrics=tokens | scores,
        rows=len(sources),
        truncated=generated.truncated,
        unfinished=generated.unfinished,
        is_synthetic=data.is_synthetic,
        predictions=generated.texts,
        warnings=warnings,
    )
