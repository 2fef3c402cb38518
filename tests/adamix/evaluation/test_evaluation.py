"""Evaluation against independent arithmetic: metrics, matching of labels, padding, truncation, pairs."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from transformers import PreTrainedTokenizerFast

from adamix.backbones.backbone import Backbone
from adamix.data import Example, TaskData
from adamix.errors import FailedPrecondition, InvalidAdapter, InvalidData
from adamix.evaluation.labelled import evaluate
from adamix.evaluation.metrics import positive_class, score
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import HeadSpec, Manifest, label_map
from adamix.files.tensors import TensorData
from adamix.modules.attach import attach
from adamix.rows.labelled import tokenize
from adamix_testing.manifests import make_manifest


def _adapter(backbone: Backbone, head: HeadSpec, seed: int = 0, **manifest: Any) -> AdapterFile:
    """A random adapter at mlp_out of layer 1 alone, without the biases that a file may leave out."""
    rng = np.random.default_rng(seed)
    described = make_manifest(
        backbone.spec,
        head,
        activation="relu",
        scaling={"mlp_out": 0.5},
        max_length=manifest.pop("max_length", 16),
    )
    shapes = {
        "layers.1.mlp_out.down_proj.weight": (4, 32),
        "layers.1.mlp_out.up_proj.weight": (32, 4),
        "head.out_proj.weight": (head.num_labels, 32),
        "head.out_proj.bias": (head.num_labels,),
    }
    tensors = {name: TensorData.from_float32(rng.standard_normal(shape)) for name, shape in shapes.items()}
    return adapter_file.decode(adapter_file.encode(described, tensors))


def _classifier(labels: tuple[str, ...]) -> HeadSpec:
    return HeadSpec(type="classification", pooling="mean", num_labels=len(labels), id2label=label_map(list(labels)))


@pytest.fixture(scope="module")
def adapter(backbone: Backbone) -> AdapterFile:
    return _adapter(backbone, _classifier(("blue", "green", "red")))


def test_logits_are_the_formula_written_out(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, adapter: AdapterFile, colours: TaskData
) -> None:
    """One text, no padding, the hidden states of the untouched backbone: pooled, adapted and projected by hand."""
    text = colours.examples[0].text
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    layer = backbone.model.encoder.layer[1]
    captured: dict[str, Any] = {}
    hooks = [
        layer.output.dense.register_forward_hook(lambda _m, _i, out: captured.update(h=out)),
        layer.output.register_forward_pre_hook(lambda _m, args: captured.update(residual=args[1])),
    ]
    with torch.no_grad():
        backbone.model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    w = {key: torch.from_numpy(np.array(tensor.array)) for key, tensor in adapter.tensors.items()}
    h = captured["h"]
    down, up = w["layers.1.mlp_out.down_proj.weight"], w["layers.1.mlp_out.up_proj.weight"]
    adapted = h + 0.5 * ((h @ down.T).clamp(min=0) @ up.T)
    hidden = layer.output.LayerNorm(adapted + captured["residual"])
    expected = hidden.mean(1) @ w["head.out_proj.weight"].T + w["head.out_proj.bias"]
    one = dataclasses.replace(colours, examples=colours.examples[:1])
    result = evaluate(adapter, backbone, tokenizer, one)
    torch.testing.assert_close(torch.tensor(result.logits), expected.detach())


def test_neither_padding_nor_order_nor_batch_size_change_an_answer(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, adapter: AdapterFile, colours: TaskData
) -> None:
    together = evaluate(adapter, backbone, tokenizer, colours, batch_size=48)
    alone = evaluate(adapter, backbone, tokenizer, colours, batch_size=1)
    # fp32 sums in another order: 1e-5 covers logits of order 10.
    np.testing.assert_allclose(together.logits, alone.logits, atol=1e-5)
    assert together.predictions == alone.predictions


def test_labels_are_matched_by_name(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, adapter: AdapterFile, colours: TaskData
) -> None:
    result = evaluate(adapter, backbone, tokenizer, colours)
    truth = [colours.labels[int(example.label)] for example in colours.examples]  # type: ignore[arg-type]
    assert result.metrics["accuracy"] == pytest.approx(sk.accuracy_score(truth, result.predictions))
    assert result.metrics["macro_f1"] == pytest.approx(sk.f1_score(truth, result.predictions, average="macro"))
    swapped = dataclasses.replace(
        colours,
        labels=colours.labels[::-1],
        examples=tuple(dataclasses.replace(e, label=2 - int(e.label)) for e in colours.examples),  # type: ignore[arg-type]
    )
    assert evaluate(adapter, backbone, tokenizer, swapped).metrics == result.metrics


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (("not_equivalent", "equivalent"), "equivalent"),  # GLUE's ids of MRPC
        (("equivalent", "not_equivalent"), "equivalent"),  # of the same rows in a CSV file: alphabetic
        (("not_duplicate", "duplicate"), "duplicate"),  # QQP's
        (("duplicate", "not_duplicate"), "duplicate"),
        (("0", "1"), "1"),
        (("ham", "spam"), "spam"),
    ],
)
def test_f1_is_about_the_positive_class_in_whatever_order_the_labels_are(
    labels: tuple[str, str],
    positive: str,
    backbone: Backbone,
    tokenizer: PreTrainedTokenizerFast,
    colours: TaskData,
) -> None:
    """Rows of an adapter with these ids, of data with these ids, and of data with the other order of them."""
    two = _adapter(backbone, _classifier(labels))
    examples = tuple(dataclasses.replace(e, label=i % 3 % 2) for i, e in enumerate(colours.examples))
    data = TaskData("pairs", "classification", labels, examples)
    turned = tuple(dataclasses.replace(e, label=1 - int(e.label)) for e in examples)  # type: ignore[arg-type]
    result = evaluate(two, backbone, tokenizer, data)
    truth = [labels[int(e.label)] for e in examples]  # type: ignore[arg-type]
    wanted = sk.f1_score(truth, result.predictions, pos_label=positive)
    other = sk.f1_score(truth, result.predictions, pos_label=next(name for name in labels if name != positive))
    assert wanted != other, "the rows tell the two classes apart"
    assert result.metrics["f1"] == pytest.approx(wanted)
    assert result.metrics["matthews"] == pytest.approx(sk.matthews_corrcoef(truth, result.predictions))
    swapped = TaskData("pairs", "classification", labels[::-1], turned)
    assert evaluate(two, backbone, tokenizer, swapped).metrics == result.metrics


def test_a_label_the_adapter_does_not_know_is_named(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, adapter: AdapterFile, colours: TaskData
) -> None:
    other = dataclasses.replace(colours, labels=("red", "green", "mauve"))
    with pytest.raises(InvalidData, match="mauve"):
        evaluate(adapter, backbone, tokenizer, other)


def test_truncated_texts_are_counted(backbone: Backbone, tokenizer: PreTrainedTokenizerFast, colours: TaskData) -> None:
    short = _adapter(backbone, _classifier(("red", "green", "blue")), max_length=5)
    lengths = [len(tokenizer(example.text)["input_ids"]) for example in colours.examples]
    expected = sum(length > 5 for length in lengths)
    assert 0 < expected < 48
    assert evaluate(short, backbone, tokenizer, colours).truncated == expected


def test_the_second_text_of_a_pair_counts(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, adapter: AdapterFile, colours: TaskData
) -> None:
    def logits(pair: str | None) -> list[list[float]]:
        example = Example("red noun1", 0, pair)
        data = dataclasses.replace(colours, examples=(example,))
        return evaluate(adapter, backbone, tokenizer, data).logits

    assert logits("green noun2") != logits("green noun3")
    # Token types tell a pair from one text of the same words, though this tokenizer leaves them out unless asked.
    assert "token_type_ids" not in tokenizer("red noun1", "green")
    (row,) = tokenize(tokenizer, [Example("red noun1", 0, "green")], max_length=32, has_types=True)
    assert row.type_ids == (0, 0, 0, 0, 1, 1)


def test_a_regression_is_clipped_in_its_prediction_only(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, numbers: TaskData
) -> None:
    clipped = _adapter(backbone, HeadSpec(type="regression", pooling="cls", clip=(0.0, 1.0)))
    result = evaluate(clipped, backbone, tokenizer, numbers)
    values = [row[0] for row in result.logits]
    assert any(value < 0 or value > 1 for value in values)
    assert result.predictions == pytest.approx([min(max(value, 0.0), 1.0) for value in values])


def test_multilabel_names_all_labels_over_the_threshold(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, palettes: TaskData
) -> None:
    spec = HeadSpec(
        type="multilabel", pooling="mean", num_labels=3, id2label=label_map(["blue", "red", "green"]), threshold=0.7
    )
    result = evaluate(_adapter(backbone, spec), backbone, tokenizer, palettes)
    for row, named in zip(result.logits, result.predictions, strict=True):
        scores = 1 / (1 + np.exp(-np.array(row)))
        assert named == [label for label, s in zip(("blue", "red", "green"), scores, strict=True) if s >= 0.7]
    truth = [[palettes.labels[i] for i in e.label] for e in palettes.examples]  # type: ignore[union-attr]
    exact = np.mean([set(t) == set(p) for t, p in zip(truth, result.predictions, strict=True)])  # type: ignore[arg-type]
    assert result.metrics["exact_match"] == pytest.approx(exact)


def test_what_cannot_be_compared_is_refused(
    backbone: Backbone, tokenizer: PreTrainedTokenizerFast, adapter: AdapterFile, colours: TaskData, numbers: TaskData
) -> None:
    with pytest.raises(InvalidData, match="regression task"):
        evaluate(adapter, backbone, tokenizer, numbers)
    with pytest.raises(InvalidData, match="no rows"):
        evaluate(adapter, backbone, tokenizer, dataclasses.replace(colours, examples=()))
    embedding = _adapter(backbone, _classifier(("a",)))
    changed = dataclasses.replace(
        embedding,
        manifest=Manifest.from_json({**embedding.manifest.to_json(), "head": {"type": "embedding", "pooling": "mean"}}),
    )
    with pytest.raises(FailedPrecondition, match="embedding"):
        evaluate(changed, backbone, tokenizer, colours)


def test_an_adapter_of_another_backbone_is_refused(backbone: Backbone, adapter: AdapterFile) -> None:
    manifest = adapter.manifest.to_json()
    manifest["backbone"]["fingerprint"] = "0" * 64
    other = dataclasses.replace(adapter, manifest=Manifest.from_json(manifest))
    with pytest.raises(InvalidAdapter) as caught:
        attach(other, backbone)
    assert caught.value.reason == "BACKBONE_MISMATCH"


def test_attaching_leaves_the_backbone_as_it_was(backbone: Backbone, adapter: AdapterFile) -> None:
    before = [name for name, _ in backbone.model.named_modules()]
    attach(adapter, backbone)
    assert [name for name, _ in backbone.model.named_modules()] == before


class TestMetrics:
    def test_correlations_are_those_of_scipy(self) -> None:
        rng = np.random.default_rng(0)
        a = rng.standard_normal(50)
        b = np.round(a + rng.standard_normal(50), 1)  # with ties
        result = score("regression", a, b, num_labels=1)
        assert result["pearson"] == pytest.approx(stats.pearsonr(a, b).statistic)
        assert result["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic)
        assert result["mse"] == pytest.approx(sk.mean_squared_error(b, a))

    def test_an_undefined_correlation_is_zero(self) -> None:
        # The mean of three times 0.1 is not 0.1.
        for constant in (np.ones(3), np.full(3, 0.1)):
            for other in (np.arange(3.0), constant):
                result = score("regression", constant, other, num_labels=1)
                assert (result["pearson"], result["spearman"]) == (0.0, 0.0)

    def test_two_classes_have_matthews_correlation(self) -> None:
        truth, predicted = np.array([0, 1, 1, 0, 1]), np.array([0, 1, 0, 0, 1])
        result = score("classification", predicted, truth, num_labels=2)
        assert result["matthews"] == pytest.approx(sk.matthews_corrcoef(truth, predicted))
        assert result["f1"] == pytest.approx(sk.f1_score(truth, predicted))

    @pytest.mark.parametrize(
        ("labels", "positive"),
        [
            (("entailment", "not_entailment"), 0),
            (("Toxic", "non-toxic"), 0),
            (("spam", "not spam"), 0),
            (("hate", "nohate"), 0),
            (("negative", "positive"), 1),
            (("no", "yes"), 1),
            (("no", "not"), 1),
            (("a", "not_b"), 1),
            (("not_a", "a"), 1),
            (("not_a", "not_not_a"), 0),
            (("LABEL_0", "LABEL_1"), 1),
            (("a", "b", "not_a"), 1),
            (("one",), 1),
        ],
    )
    def test_the_positive_class_is_the_second_unless_it_denies_the_first(
        self, labels: tuple[str, ...], positive: int
    ) -> None:
        assert positive_class(labels) == positive

    def test_which_metrics_there_are_depends_on_no_row(self) -> None:
        """Draws of one mixture are compared metric by metric, though one of them alone may predict the third class."""
        truth = np.array([0, 1, 1])
        names = [set(score("classification", found, truth, num_labels=3)) for found in (truth, np.array([0, 1, 2]))]
        assert names == [{"accuracy", "macro_f1"}] * 2

    @pytest.mark.parametrize("label", [0, 1])
    @pytest.mark.filterwarnings("error")
    def test_one_row_is_measured_without_a_warning(self, label: int) -> None:
        one = np.array([label])
        result = score("classification", one, one, num_labels=2)
        assert (result["accuracy"], result["macro_f1"], result["matthews"]) == (1.0, 1.0, 0.0)
        assert score("multilabel", one[None], one[None], num_labels=1)["exact_match"] == 1.0
