"""A cloze head: what is read where, which words are labels, what of a file is refused, and that it learns."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import example as case
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from adamix.backbones.backbone import Backbone, from_language_model
from adamix.config import AdapterConfig, ClozeConfig, HeadConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.data import Example, TaskData
from adamix.errors import FailedPrecondition, InvalidAdapter, InvalidConfig, InvalidData
from adamix.evaluation.labelled import evaluate, predict, token_rows
from adamix.files import adapter_file
from adamix.files.manifest import HeadSpec, Manifest
from adamix.files.mixture_file import read_mixture
from adamix.files.tensors import TensorData
from adamix.merging.merge import merge
from adamix.modules.attach import attach
from adamix.routing.choice import parse_routing
from adamix.routing.probe import MixtureProbe
from adamix.rows import cloze
from adamix.texts import MAX_TEXT_BYTES
from adamix.training.train import train
from adamix_server.frontend.control.validation import judge

MakeWords = Callable[[list[str]], PreTrainedTokenizerFast]
MakeModel = Callable[[int], BertForMaskedLM]

_MOODS = ["good", "bad", "great", "terrible", "fun", "dull"]
WORDS = [*_MOODS, "It", "was", ".", "?", ",", "plot", "cast", "film", "scene", "yes", "no", "the", "end"]
MOOD = TaskData(
    "mood",
    "classification",
    ("negative", "positive"),
    tuple(
        Example(f"the {noun} {'fun' if label else 'dull'} {other}", label)
        for label in (0, 1)
        for noun in ("plot", "cast", "film", "scene")
        for other in ("plot", "cast", "film", "scene")
    ),
)
PAIRS = dataclasses.replace(MOOD, examples=tuple(dataclasses.replace(e, pair="the end") for e in MOOD.examples))
CLOZE = ClozeConfig(words=(("negative", "terrible"), ("positive", "great")))
HEAD = HeadConfig(cloze=CLOZE)


@pytest.fixture(scope="module")
def tokenizer(make_masked_words: MakeWords) -> PreTrainedTokenizerFast:
    return make_masked_words(WORDS)


@pytest.fixture(scope="module")
def masked(tokenizer: PreTrainedTokenizerFast, make_masked: MakeModel) -> BertForMaskedLM:
    return make_masked(len(tokenizer))


@pytest.fixture(scope="module")
def encoder(masked: BertForMaskedLM) -> Backbone:
    return from_language_model(masked, name="tiny")


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    """As GPT-2's: the space in front of a word is part of its token, and nothing is put around a text."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    texts = [" ".join(WORDS)] * 3
    tokens.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=["<end>"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<end>", bos_token="<end>")


@pytest.fixture(scope="module")
def causal(bpe: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(bpe), n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def decoder(causal: GPT2LMHeadModel) -> Backbone:
    return from_language_model(causal, name="tiny-decoder")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, encoder: Backbone, tokenizer: PreTrainedTokenizerFast) -> Path:
    out = tmp_path_factory.mktemp("run")
    _train(encoder, tokenizer, out)
    return out


def _train(
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    out: Path,
    data: Any = MOOD,
    validation: TaskData | None = MOOD,
    **changes: Any,
) -> Any:
    config: dict[str, Any] = {
        "adapter": AdapterConfig(rank=16, sites=("attn_q", "attn_v", "attn_out", "mlp_out")),
        "mixture": MixtureConfig(num_experts=2),
        "head": HEAD,
        "train": TrainConfig(max_steps=100, batch_size=8, learning_rate=5e-3, max_length=32),
        **changes,
    }
    return train(TrainingPlan(**config), backbone, tokenizer, data, validation, out)


def _spec(
    tokenizer: PreTrainedTokenizerFast, data: TaskData = MOOD, *, decoder: bool = False, **cloze_: Any
) -> HeadSpec:
    return cloze.head_spec(dataclasses.replace(CLOZE, **cloze_), tokenizer, data, is_decoder=decoder)


def _rows(spec: HeadSpec, tokenizer: PreTrainedTokenizerFast, *examples: Example, max_length: int = 32) -> Any:
    return cloze.token_rows(spec, tokenizer, examples, max_length=max_length, has_types=True)


def _words(tokenizer: PreTrainedTokenizerFast, row: Any) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(row.input_ids))


class TestWhatIsRead:
    def test_the_text_stands_in_the_template(self, tokenizer: PreTrainedTokenizerFast) -> None:
        (row,) = _rows(_spec(tokenizer), tokenizer, Example("the film", 0))
        assert _words(tokenizer, row) == ["[CLS]", "the", "film", "It", "was", "[MASK]", ".", "[SEP]"]
        assert row.read_at == 5
        (row,) = _rows(_spec(tokenizer, PAIRS), tokenizer, Example("the film", 0, "the end"))
        assert _words(tokenizer, row) == ["[CLS]", "the", "film", "?", "[MASK]", ",", "the", "end", "[SEP]"]
        assert row.read_at == 4

    @pytest.mark.parametrize("text", ["good [MASK] film", "{mask} good", "{text} {pair}", "[MASK]"])
    def test_a_text_that_spells_out_a_mask_is_a_text(self, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
        for template in ("{text} It was {mask}.", "It was {mask}. {text}"):
            (row,) = _rows(_spec(tokenizer, template=template), tokenizer, Example(text, 0))
            words = _words(tokenizer, row)
            assert words[row.read_at - 2 : row.read_at + 2] == ["It", "was", "[MASK]", "."]

    def test_a_decoder_predicts_what_comes_next(self, bpe: PreTrainedTokenizerFast) -> None:
        for template in (None, "{text} It was {mask}.", "{text} It was "):
            spec = _spec(bpe, decoder=True, template=template)
            assert (spec.template, spec.pooling) == ("{text} It was", "last")
            (row,) = _rows(spec, bpe, Example("the film", 0))
            assert bpe.decode(row.input_ids) == "the film It was"
            assert row.read_at == len(row) - 1
            # The word's token with the space that comes before it there.
            assert bpe.convert_ids_to_tokens(list(spec.verbalizer or ())) == ["Ġterrible", "Ġgreat"]

    @settings(max_examples=60, deadline=None)
    @given(first=st.integers(1, 60), second=st.integers(1, 60), max_length=st.integers(10, 40))
    @case(first=3, second=3, max_length=10)
    def test_texts_are_cut_and_the_template_is_not(
        self, tokenizer: PreTrainedTokenizerFast, first: int, second: int, max_length: int
    ) -> None:
        example = Example(" ".join(["plot"] * first), 0, " ".join(["cast"] * second))
        (row,) = _rows(_spec(tokenizer, PAIRS), tokenizer, example, max_length=max_length)
        words, room = _words(tokenizer, row), max_length - 5
        assert row.is_truncated == (first + second > room)
        assert len(row) == min(first + second, room) + 5
        kept = words.count("plot"), words.count("cast")
        assert words == ["[CLS]", *["plot"] * kept[0], "?", "[MASK]", ",", *["cast"] * kept[1], "[SEP]"]
        assert words[row.read_at] == "[MASK]"
        # The longer text gives first: where one lost anything, the other is no longer than it by more than a token.
        for own, other, before in ((kept[0], kept[1], first), (kept[1], kept[0], second)):
            assert own == before or other <= own + 1

    def test_no_more_than_64_kib_of_a_text_is_read(self, tokenizer: PreTrainedTokenizerFast) -> None:
        late = Example(" " * MAX_TEXT_BYTES + "plot", 0, "cast" + " " * MAX_TEXT_BYTES)
        (row,) = _rows(_spec(tokenizer, PAIRS), tokenizer, late)
        assert _words(tokenizer, row) == ["[CLS]", "?", "[MASK]", ",", "cast", "[SEP]"]
        assert row.is_truncated

    def test_a_character_of_several_tokens_is_cut_as_a_whole(self) -> None:
        """Its tokens all lie at the same place of the text, so that cutting one of them alone would cut nothing."""
        tokens = Tokenizer(models.BPE())
        tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokens.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        texts = [" ".join(WORDS)] * 3
        tokens.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
        bytes_ = PreTrainedTokenizerFast(tokenizer_object=tokens)
        spec = _spec(bytes_, decoder=True)
        parrots = "\N{PARROT}" * 8
        assert len(bytes_(parrots)["input_ids"]) == 8 * 4
        for room in range(4 * 8 + 1):
            (row,) = _rows(spec, bytes_, Example(parrots, 0), max_length=room + 2)
            assert len(row) == 4 * (room // 4) + 2
            assert bytes_.decode(row.input_ids) == "\N{PARROT}" * (room // 4) + " It was"

    def test_there_must_be_room_for_the_template(self, tokenizer: PreTrainedTokenizerFast) -> None:
        with pytest.raises(InvalidConfig, match="no room for the template"):
            _rows(_spec(tokenizer), tokenizer, Example("the film", 0), max_length=5)

    def test_logits_are_the_language_models_own(
        self, encoder: Backbone, masked: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, run: Path
    ) -> None:
        self._compare(encoder, masked, tokenizer, run)

    def test_logits_of_a_decoder_are_its_own(
        self, decoder: Backbone, causal: GPT2LMHeadModel, bpe: PreTrainedTokenizerFast, tmp_path: Path
    ) -> None:
        result = _train(decoder, bpe, tmp_path, validation=None, train=TrainConfig(max_steps=1, max_length=32))
        assert result.head_parameters == 0
        self._compare(decoder, causal, bpe, tmp_path)

    def _compare(self, backbone: Backbone, model: PreTrainedModel, tokenizer: Any, out: Path) -> None:
        """With an adapter that adds nothing: against the whole model of transformers, row by row, without padding."""
        mixture = read_mixture(out)
        silent = {
            key: TensorData.from_float32(0 * tensor.to_float32()) if ".up_proj." in key else tensor
            for key, tensor in mixture.tensors.items()
        }
        adapter = adapter_file.decode(merge(dataclasses.replace(mixture, tensors=silent)))
        examples = [Example("the film", 0), Example("the plot good dull fun cast", 1)]
        rows = token_rows(adapter.manifest, backbone, tokenizer, examples)
        found = predict(attach(adapter, backbone), rows, pad_id=0)
        for row, logits in zip(rows, found, strict=True):
            with torch.no_grad():
                expected: Tensor = model(torch.tensor([row.input_ids])).logits[0, row.read_at]
            chosen = expected[list(adapter.manifest.head.verbalizer or ())]
            torch.testing.assert_close(logits, chosen, atol=1e-5, rtol=1e-5)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("awful", r"'awful' for the label 'negative' is not one token of the backbone but '\[UNK\]'"),
            ("so bad", r"not one token of the backbone but '\[UNK\] bad'"),
            ("great", "the words of 'negative' and 'positive' are the same token"),
        ],
    )
    def test_words_that_are_no_token(self, tokenizer: PreTrainedTokenizerFast, word: str, message: str) -> None:
        with pytest.raises(InvalidConfig, match=message):
            _spec(tokenizer, words=(("negative", word), ("positive", "great")))

    def test_the_pieces_of_a_long_word_are_named(self, bpe: PreTrainedTokenizerFast) -> None:
        with pytest.raises(InvalidConfig, match=r"'dullest' .* but 'Ġdull es t': give another word"):
            _spec(bpe, decoder=True, words=(("negative", "dullest"), ("positive", "great")))

    def test_labels_and_templates_that_do_not_suit(self, tokenizer: PreTrainedTokenizerFast, bpe: Any) -> None:
        with pytest.raises(InvalidConfig, match="a word for 'mixed', which is none of the labels negative, positive"):
            _spec(tokenizer, words=(("mixed", "fun"),))
        with pytest.raises(InvalidConfig, match=r"has no \{pair\}, and the data have two texts"):
            _spec(tokenizer, PAIRS, template="{text} It was {mask}.")
        with pytest.raises(InvalidConfig, match=r"has a \{pair\}, and the data have one text"):
            _spec(tokenizer, template="{text} ? {mask} , {pair}")
        with pytest.raises(InvalidConfig, match=r"has no \{mask\}"):
            _spec(tokenizer, template="{text} It was good")
        with pytest.raises(InvalidConfig, match=r"put \{mask\} behind \{text\} and \{pair\}"):
            _spec(bpe, PAIRS, decoder=True, template="{text} ? {mask} , {pair}")
        with pytest.raises(InvalidConfig, match="has no mask token"):
            _spec(bpe)
        with pytest.raises(InvalidData, match="a cloze head classifies, and numbers is a regression"):
            _spec(tokenizer, TaskData("numbers", "regression", (), (Example("the film", 1.0),)))
        with pytest.raises(InvalidData, match="does not suit pairs"):
            _rows(_spec(tokenizer), tokenizer, PAIRS.examples[0])

    @pytest.mark.parametrize(
        "template", ["It was {mask}.", "{text} {text} {mask}", "{text} {mask} {mask}", "{text}\ud800"]
    )
    def test_templates_that_are_none(self, template: str) -> None:
        with pytest.raises(InvalidConfig, match="template"):
            ClozeConfig(template=template)

    def test_settings_that_do_not_go_together(self, encoder: Backbone, tokenizer: Any, tmp_path: Path) -> None:
        with pytest.raises(InvalidConfig, match="no dense layer of its own"):
            HeadConfig(cloze=CLOZE, dense="own")
        with pytest.raises(InvalidConfig, match="names a label twice"):
            ClozeConfig(words=(("a", "b"), ("a", "c")))
        with pytest.raises(InvalidConfig, match="nothing to train"):
            _train(encoder, tokenizer, tmp_path / "x", adapter=AdapterConfig(sites=()))
        with pytest.raises(InvalidConfig, match="loaded without its language-model head"):
            _train(dataclasses.replace(encoder, lm_head=None), tokenizer, tmp_path / "x")
        assert not (tmp_path / "x").exists()


class TestFiles:
    def _head(self, run: Path, **changes: Any) -> Any:
        manifest = adapter_file.decode(merge(run)).manifest.to_json()
        manifest["head"] = {k: v for k, v in (manifest["head"] | changes).items() if v is not None}
        return manifest

    def test_template_and_words_travel_in_the_file(self, run: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        adapter = adapter_file.decode(merge(run))
        head = adapter.manifest.head
        assert (head.type, head.template, head.pooling) == ("cloze", "{text} It was {mask}.", "none")
        assert tokenizer.convert_ids_to_tokens(list(head.verbalizer or ())) == ["terrible", "great"]
        assert head.labels == ("negative", "positive")
        assert adapter.head() == {}

    @pytest.mark.parametrize(
        "changes",
        [
            {"template": None},
            {"verbalizer": None},
            {"template": ""},
            {"template": "{text}" + "x" * 3000 + "{mask}"},
            {"template": "no gap {text}"},
            {"template": "{text} {mask} {mask}"},
            {"template": "{mask}"},
            {"template": 3},
            {"verbalizer": [5]},
            {"verbalizer": [5, 5]},
            {"verbalizer": [5, -1]},
            {"verbalizer": [5, 1 << 40]},
            {"verbalizer": [5, 6.5]},
            {"pooling": "mean"},
            {"pooling": "last"},
            {"dense": "own", "activation": "tanh"},
            {"type": "classification", "pooling": "mean"},
        ],
    )
    def test_a_manifest_that_lies_is_refused(self, run: Path, changes: dict[str, Any]) -> None:
        with pytest.raises(InvalidAdapter) as caught:
            Manifest.from_json(self._head(run, **changes))
        assert caught.value.reason == "MANIFEST_INVALID"

    def test_a_token_beyond_the_vocabulary_is_refused(self, run: Path, encoder: Backbone) -> None:
        adapter = adapter_file.decode(merge(run))
        lying = Manifest.from_json(self._head(run, verbalizer=[5, encoder.spec.vocab_size]))
        data = adapter_file.encode(lying, adapter.tensors)
        with pytest.raises(InvalidAdapter, match=r"head\.verbalizer names a token that is not among"):
            attach(adapter_file.decode(data), encoder)

    def test_the_server_refuses_one_in_one_sentence(self, run: Path, encoder: Backbone) -> None:
        with pytest.raises(InvalidAdapter, match="which this server does not load") as caught:
            judge(merge(run), encoder.spec)
        assert caught.value.reason == "HEAD_UNSUPPORTED"

    def test_other_heads_say_nothing_of_it(self) -> None:
        plain = HeadSpec(type="classification", pooling="mean", num_labels=2)
        assert msgspec.to_builtins(plain).keys() >= {"template", "verbalizer"}
        assert (plain.template, plain.verbalizer) == (None, None)


class TestTraining:
    def test_it_learns_and_leaves_the_language_model_alone(
        self,
        run: Path,
        encoder: Backbone,
        masked: BertForMaskedLM,
        tokenizer: PreTrainedTokenizerFast,
        make_masked: MakeModel,
    ) -> None:
        adapter = adapter_file.decode(merge(run))
        found = evaluate(adapter, encoder, tokenizer, MOOD)
        # Whether the text has `fun` or `dull` in it; guessing gives 0.5.
        assert found.metrics["accuracy"] >= 0.9
        assert adapter.manifest.training.metrics["validation_accuracy"] == found.metrics["accuracy"]
        untouched = make_masked(len(tokenizer)).state_dict()
        assert all(torch.equal(untouched[name], p) for name, p in masked.named_parameters())
        with pytest.raises(FailedPrecondition, match="without its language-model head"):
            evaluate(adapter, dataclasses.replace(encoder, lm_head=None), tokenizer, MOOD)

    @pytest.mark.parametrize("routing", ["random", "random:token", "ensemble"])
    def test_a_mixture_is_measured_by_any_route(
        self, run: Path, encoder: Backbone, tokenizer: PreTrainedTokenizerFast, routing: str
    ) -> None:
        found = MixtureProbe(read_mixture(run), encoder, tokenizer, MOOD).evaluate(parse_routing(routing))
        assert found.metrics["accuracy"] >= 0.7  # the experts were trained to agree; guessing gives 0.5
        assert set(found.predictions) <= {"negative", "positive"}

    def test_accumulation_changes_nothing(self, tokenizer: Any, make_masked: MakeModel, tmp_path: Path) -> None:
        settings_ = TrainConfig(max_steps=2, batch_size=8, learning_rate=1e-2, max_length=32, group_by_length=False)
        body = from_language_model(make_masked(len(tokenizer)), name="tiny")
        for module in body.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for count in (1, 4):
            changed = dataclasses.replace(settings_, accumulation=count)
            _train(body, tokenizer, tmp_path / str(count), validation=None, train=changed)
        first, second = (read_mixture(tmp_path / name).tensors for name in ("1", "4"))
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            # Adam divides by the size of the gradient: what differs in the last bit may differ by a step's share.
            assert abs(tensor.to_float32() - second[key].to_float32()).max() < 1e-4
