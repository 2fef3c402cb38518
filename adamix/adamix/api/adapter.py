"""`adamix.load`: one merged adapter that answers here, without a server, with the values that a client gives."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from adamix import answers
from adamix.api.bars import progress_bar
from adamix.api.evaluating import HowMeasured, Measured, measure
from adamix.api.sources import Data
from adamix.api.words import named_as_arguments
from adamix.errors import FailedPrecondition, InvalidConfig, InvalidData
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import Manifest
from adamix_client.results import Result

if TYPE_CHECKING:
    from adamix.backbones.backbone import Backbone
    from adamix.experiments.release import Published
    from adamix.experiments.run import Backbones
    from adamix.generation.decoding import Decoding
    from adamix.modules.heads import TaskModel
    from adamix.prompts.prompts import Prompts
    from adamix.prompts.vocabulary import Vocabulary
    from adamix_client.generate_values import GeneratedText

Text = str | tuple[str, str]
"""A text, or a pair of texts for an adapter that was trained on pairs."""

# More tokens than any text has.
_WHOLE = 1 << 30


class Adapter:
    """A merged adapter on disk. Its backbone is loaded with the first answer, and stays.

    Attributes:
        file: where it lies; an adapter can be given wherever a path can.
        adapter: what is in the file.
        backbone_name: what its backbone is loaded by.
    """

    def __init__(
        self, file: Path, adapter: AdapterFile, backbone_name: str, device: str, backbones: "Backbones | None" = None
    ) -> None:
        self.file = file
        self.adapter = adapter
        self.backbone_name = backbone_name
        self._device = device
        self._given = backbones

    def __fspath__(self) -> str:
        return os.fspath(self.file)

    def __repr__(self) -> str:
        head = self.manifest.head.type
        return f"<Adapter {self.file.name} {self.digest[:12]}: {head} on {self.manifest.backbone.label}>"

    @property
    def manifest(self) -> Manifest:
        return self.adapter.manifest

    @property
    def digest(self) -> str:
        """sha256 of the file: the version that a server calls it by."""
        return self.adapter.digest

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of their ids; empty where the head has none."""
        head = self.manifest.head
        return head.labels if head.type in ("classification", "multilabel", "cloze") else ()

    # A string is a sequence of texts too, and a pair is: the first declaration is for them.
    @overload
    def predict(  # type: ignore[overload-overlap]
        self, texts: Text, *, batch_size: int = 32, truncate: bool = False, progress: bool = False
    ) -> Result: ...
    @overload
    def predict(
        self, texts: Sequence[Text], *, batch_size: int = 32, truncate: bool = False, progress: bool = False
    ) -> list[Result]: ...
    def predict(
        self, texts: Text | Sequence[Text], *, batch_size: int = 32, truncate: bool = False, progress: bool = False
    ) -> Result | list[Result]:
        """Answer one text with one value, or a list of texts with a list of values in its order.

        Args:
            texts: a list of any length; a tuple of two is one pair of texts.
            batch_size: texts per forward pass.
            truncate: cut texts that are too long for the adapter, which is an error otherwise.

        Returns:
            `Classification`, `MultiLabel`, `Regression` or `Embedding` of `adamix_client`, by the adapter's head. They
            are a server's up to the rounding of fp32.

        Raises:
            InvalidData: a text is empty, too long, or no text; the message says which.
            InvalidAdapter: the adapter does not fit the backbone.
            FailedPrecondition: its head generates texts: see `generate`.
        """
        with named_as_arguments():
            if isinstance(texts, str | tuple):
                return self._predict([texts], batch_size, truncate=truncate, progress=progress)[0]
            return self._predict(list(texts), batch_size, truncate=truncate, progress=progress)

    def _predict(self, texts: list[Text], batch_size: int, *, truncate: bool, progress: bool) -> list[Result]:
        from adamix.data import Example
        from adamix.evaluation import labelled

        head = self.manifest.head
        if head.type == "causal_lm":
            raise FailedPrecondition("this adapter generates texts: use generate()", reason="HEAD_UNSUPPORTED")
        if batch_size < 1:
            raise InvalidConfig(f"batch_size must be 1 or more, not {batch_size}", field="batch_size")
        pairs = [_checked(number, text) for number, text in enumerate(texts)]
        if not pairs:
            return []
        rows = labelled.token_rows(
            self.manifest, self._backbone, self._tokenizer, [Example(text, 0, pair) for text, pair in pairs]
        )
        for number, row in enumerate(rows):
            if row.is_truncated and not truncate:
                raise InvalidData(
                    f"text {number} is longer than the {self.manifest.max_length} tokens of the adapter: shorten it, "
                    "or pass truncate=True",
                    reason="TEXT_TOO_LONG",
                )
        done = 0
        with progress_bar("predicting", shown=progress) as advance:

            def on_rows(count: int) -> None:
                nonlocal done
                done += count
                advance(done, len(rows))

            logits = labelled.predict(
                self._model, rows, pad_id=self._tokenizer.pad_token_id or 0, batch_size=batch_size, on_rows=on_rows
            )
        # What a cloze head says of its labels is a classification.
        kind = _Classifying(head) if head.type == "cloze" else head
        return [answers.interpret(kind, row) for row in logits.tolist()]

    def generate(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        no_repeat_ngram_size: int = 0,
        seed: int | None = None,
    ) -> "GeneratedText":
        """Write a text behind a prompt, or behind a chat: a list of messages with `role` and `content`.

        The tokens are those that a server draws by the same seed. Nothing is streamed here.

        Raises:
            InvalidConfig: a setting is out of range, or the prompt leaves no room.
            InvalidData: the prompt is empty, or the template refuses the chat.
            FailedPrecondition: the adapter's head generates no text.
        """
        with named_as_arguments():
            from adamix.generation.sample import sample
            from adamix.generation.sampling import Sampling
            from adamix_client.generate_values import GeneratedText, TokenUsage

            if self.manifest.head.type != "causal_lm":
                raise FailedPrecondition(
                    f"an adapter with a head of type {self.manifest.head.type} generates no text: use predict()",
                    reason="HEAD_UNSUPPORTED",
                )
            sampling = Sampling(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
                no_repeat_ngram_size=no_repeat_ngram_size,
                seed=seed,
            )
            ids = self._prompt(prompt)
            form = self.manifest.prompt_form if isinstance(prompt, str) else "chat"
            ends = self._vocabulary.ends(form)
            drawn = sample(self.adapter, self._backbone, ids, sampling, max_new_tokens=max_new_tokens, end_ids=ends)
            text = self._tokenizer.backend_tokenizer.decode(drawn.token_ids, skip_special_tokens=True)
            return GeneratedText(
                text=text,
                finish_reason=drawn.finish,
                usage=TokenUsage(len(ids), len(drawn.token_ids), 0),
                version=self.digest,
                seed=drawn.seed,
                token_ids=tuple(drawn.token_ids),
                logprobs=(),
            )

    def _prompt(self, prompt: str | Sequence[Mapping[str, str]]) -> Sequence[int]:
        """The ids of a prompt in the form that the adapter was made for, or of a chat: all, as a server has it."""
        from adamix.prompts.prompts import Message

        if not isinstance(prompt, str):
            messages = [Message(str(message["role"]), str(message["content"])) for message in prompt]
            return self._prompts.chat(messages, self.manifest.chat_template)
        if not prompt or prompt.isspace():
            raise InvalidData("the prompt is empty")
        if self.manifest.prompt_form == "chat":
            return self._prompts.chat([Message("user", prompt)], self.manifest.chat_template)
        if self.manifest.prompt_form == "text":
            return self._prompts.text(prompt)
        return self._prompts.source(prompt, _WHOLE).ids

    def evaluate(
        self,
        data: Data,
        *,
        split: str = "test",
        decoding: "str | Decoding | None" = None,
        scoring: str | None = None,
        subset: str | None = None,
        batch_size: int = 32,
        progress: bool = True,
    ) -> Measured:
        """Measure on labelled text or reference texts: `adamix.evaluate`, with the backbone that is loaded here."""
        how = HowMeasured(split, "merged", None, decoding, scoring, subset, batch_size, self._device)
        with named_as_arguments():
            return measure(self.adapter, None, data, self.backbone_name, how, self._backbones, progress=progress)

    def push(self, server: str, task: str, *, api_key: str | None = None) -> "Published":
        """Register the file with a server as the task's live version; the same file again changes nothing.

        Args:
            server: HOST:PORT; `grpcs://HOST:PORT` for TLS.
            api_key: None is what the environment says, as for the client (`ADAMIX_API_KEY`, `ADAMIX_CA`, …).

        Raises:
            AdamixError: what the server refuses, or that there is none.
        """
        from adamix.api.publisher import ServerPublisher, connecting_with

        return ServerPublisher(server, connecting_with(api_key)).publish(task, self.file)

    def report(self, out: str | os.PathLike[str], *, data: Data = None, split: str = "test", card: bool = True) -> Path:
        """Write the page that `adamix report` writes of the file: see `adamix.report`."""
        from adamix.api.reporting import report

        return report(
            self.file, out=out, data=data, split=split, backbone=self.backbone_name, device=self._device, card=card
        )

    @cached_property
    def _backbones(self) -> "Backbones":
        from adamix.experiments.run import Backbones

        return self._given or Backbones()

    @cached_property
    def _backbone(self) -> "Backbone":
        from adamix.backbones.backbone import device_name

        uses_head = self.manifest.head.type in ("cloze", "causal_lm")
        return self._backbones.load(self.backbone_name, device_name(self._device), language_model=uses_head)

    @cached_property
    def _tokenizer(self) -> Any:
        from adamix.backbones.backbone import load_tokenizer

        return load_tokenizer(self.backbone_name)

    @cached_property
    def _model(self) -> "TaskModel":
        from adamix.modules.attach import attach

        return attach(self.adapter, self._backbone)

    @cached_property
    def _vocabulary(self) -> "Vocabulary":
        from adamix.backbones.backbone import export_generation
        from adamix.prompts.vocabulary import Vocabulary

        return Vocabulary.from_json(export_generation(self.backbone_name))

    @cached_property
    def _prompts(self) -> "Prompts":
        from adamix.prompts.prompts import Prompts

        return Prompts(self._tokenizer.backend_tokenizer, self._vocabulary)


class _Classifying:
    """A cloze head as its answers are read."""

    type = "classification"

    def __init__(self, head: Any) -> None:
        self.num_labels: int = head.num_labels
        self.label = head.label
        self.effective_threshold: float = head.effective_threshold
        self.clip = self.normalize = self.dim = None


def load(
    file: str | os.PathLike[str], *, backbone: str | os.PathLike[str] | None = None, device: str = "auto"
) -> Adapter:
    """A merged adapter, to be asked here.

    Args:
        file: what `merge` wrote, or any adapter file.
        backbone: as for `fit`; None is the one that the adapter names.
        device: auto, cpu or cuda.

    Raises:
        InvalidAdapter: the file is no merged adapter; the message says what it is.
        InvalidConfig: it is a directory.
        FileNotFoundError: as usual.
    """
    with named_as_arguments():
        if Path(file).is_dir():
            raise InvalidConfig(
                f"{os.fspath(file)} is a directory: merge its mixture into a file first, by merge()", field="file"
            )
        adapter = adapter_file.read(file)
        return Adapter(Path(file), adapter, os.fspath(backbone or adapter.manifest.backbone.name), device)


def _checked(number: int, text: object) -> tuple[str, str | None]:
    """A text and, of a pair, the second one."""
    parts = text if isinstance(text, tuple) else (text,)
    if len(parts) not in (1, 2) or not all(isinstance(part, str) for part in parts):
        raise InvalidData(f"text {number} is neither a text nor a pair of texts")
    for part in parts:
        if not part or part.isspace():
            raise InvalidData(f"text {number} is empty", reason="TEXT_EMPTY")
        if not part.isascii() and any("\ud800" <= char <= "\udfff" for char in part):
            raise InvalidData(f"text {number} is not valid Unicode (half of a surrogate pair)")
    return parts[0], parts[1] if len(parts) == 2 else None
