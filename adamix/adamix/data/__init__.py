"""Labelled text for training and evaluation: `--data` of the command line.

`load` reads a CSV or JSONL file, a directory with one file per split, a packaged corpus or a data set of the
`datasets` library, and answers with plain text and label ids; `load_generation` does the same for sources with
reference texts. Nothing here knows a tokenizer, a model or torch.
"""

from adamix.data.corpora import CORPORA, Corpus
from adamix.data.few_shot import few_shot
from adamix.data.generation.data import GenerationData, GenerationExample
from adamix.data.generation.sources import load_generation
from adamix.data.sources import load
from adamix.data.task import SPLITS, TASK_TYPES, Example, Split, TaskData, TaskType, split_of

__all__ = [
    "CORPORA",
    "SPLITS",
    "TASK_TYPES",
    "Corpus",
    "Example",
    "GenerationData",
    "GenerationExample",
    "Split",
    "TaskData",
    "TaskType",
    "few_shot",
    "load",
    "load_generation",
    "split_of",
]
