"""Every family, head, placement and kind of input over real servers: the answers are those of `adamix evaluate`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from adamix import data as datasets
from adamix.backbones import backbone
from adamix.cli import app
from adamix.data import Example
from adamix.errors import AdamixError, Code
from adamix.evaluation.labelled import predict
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneSpec, HeadSpec
from adamix.files.tensors import TensorData
from adamix.modules.attach import attach
from adamix.rows.labelled import tokenize
from adamix_client import Classification, Client, Embedding, Input, MultiLabel, Prediction
from adamix_testing.servers import Server, StartServer

MakeAdapter = Callable[..., AdapterFile]
Serve = Callable[[Path | str], Server]

# fp32 on both sides: only the order of sums differs.
TOLERANCE = 1e-5

TEXTS = ["the cat sleeps", "a big red dog runs over the lazy bird", "fish", "not the quick blue cat and a small dog"]


@dataclass(frozen=True)
class Trained:
    """An adapter that the commands made, and what `adamix evaluate` says of its own training rows."""

    adapter: AdapterFile
    rows: list[dict[str, Any]]

    def inputs(self, task: str, *, truncate: bool = False) -> list[Input]:
        return [
            Input(task, pair=(row["text"], row["text_pair"]), truncate=truncate)
            if "text_pair" in row
            else Input(task, text=row["text"], truncate=truncate)
            for row in self.rows
        ]


def command(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def trained(directory: Path, backbone_name: Path | str, rows: Sequence[dict[str, Any]], *flags: object) -> Trained:
    """Train a few steps, merge, evaluate: all by command, through files."""
    data, out, file, predictions = (directory / name for name in ("data.jsonl", "run", "adapter", "predictions.jsonl"))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command("train", "--backbone", backbone_name, "--data", data, "--out", out, "--batch-size", 4, "--rank", 4, *flags)
    command("merge", out, "--out", file)
    command("evaluate", file, "--data", data, "--split", "train", "--save-predictions", predictions)
    lines = [json.loads(line) for line in predictions.read_text().splitlines()]
    return Trained(adapter_file.read(file), lines[:60])


def data_of(adapter: AdapterFile) -> bytes:
    return adapter_file.encode(adapter.manifest, adapter.tensors)


def changed(adapter: AdapterFile, head: HeadSpec | None = None, max_length: int = 0, **tensors: Any) -> AdapterFile:
    """The adapter with another head (all of whose tensors are given) or another limit."""
    manifest = msgspec.structs.replace(
        adapter.manifest, head=head or adapter.manifest.head, max_length=max_length or adapter.manifest.max_length
    )
    kept = {name: t for name, t in adapter.tensors.items() if head is None or not name.startswith("head.")}
    given = {f"head.{name.replace('__', '.')}": TensorData.from_float32(values) for name, values in tensors.items()}
    return adapter_file.decode(adapter_file.encode(manifest, kept | given))


def offline(adapter: AdapterFile, name: Path | str, examples: Sequence[Example]) -> NDArray[np.float32]:
    """What the head puts out, padded, by plain transformers."""
    loaded = backbone.load(str(name))
    has_types = loaded.spec.type_vocab_size > 1
    rows = tokenize(
        backbone.load_tokenizer(str(name)), examples, max_length=adapter.manifest.max_length, has_types=has_types
    )
    result: NDArray[np.float32] = predict(attach(adapter, loaded), rows, pad_id=0).numpy()
    return result


def assert_equal(answers: Sequence[Prediction], rows: Sequence[dict[str, Any]]) -> None:
    """Answers against lines of saved predictions."""
    for answer, row in zip(answers, rows, strict=True):
        assert answer.error is None
        np.testing.assert_allclose(answer.logits, row["logits"], atol=TOLERANCE, rtol=TOLERANCE)
        if isinstance(answer.result, Classification):
            assert answer.result.label == row["prediction"]
        elif isinstance(answer.result, MultiLabel):
            assert list(answer.result.labels) == row["prediction"]


def refused(client: Client, item: Input) -> AdamixError:
    with pytest.raises(AdamixError) as caught:
        client.predict([item])
    return caught.value


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [example.text for example in datasets.load("trec", split="train").examples[:900]]


@pytest.fixture(scope="module")
def pairs(questions: list[str]) -> list[dict[str, Any]]:
    """Is the question in the passage? Every third question is as long as a passage, so that both parts are cut."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(40):
        passage = questions[index * 20 : index * 20 + int(random.integers(1, 16))]
        is_inside = index % 2 == 0
        question = passage[0] if is_inside else questions[-1 - index]
        if index % 3 == 0:
            question = " ".join([question, *questions[800 + index : 812 + index]])
        rows.append({"text": question, "text_pair": " ".join(passage), "label": "yes" if is_inside else "no"})
    return rows


@pytest.fixture(scope="module")
def passages() -> list[dict[str, Any]]:
    """Questions and passages of BoolQ, most of them longer than the task will take."""
    examples = datasets.load("boolq", split="train").examples[:48]
    return [{"text": e.text, "text_pair": e.pair, "label": "yes" if e.label else "no"} for e in examples]


@pytest.fixture(scope="module")
def pretrained_pairs(tmp_path_factory: pytest.TempPathFactory, pairs: list[dict[str, Any]]) -> Trained:
    directory = tmp_path_factory.mktemp("pairs")
    return trained(directory, "minilm", pairs, "--max-steps", 4, "--max-length", 48, "--lr", "5e-3")


@pytest.mark.weights
@pytest.mark.slow
class TestPretrainedBert:
    def test_pairs_with_token_types(self, serve: Serve, pretrained_pairs: Trained) -> None:
        made = pretrained_pairs
        with serve("minilm").client() as client:
            client.register("inside", data_of(made.adapter))
            answers = client.predict(made.inputs("inside", truncate=True), return_logits=True).predictions
            assert_equal(answers, made.rows)
            # The parts of a pair are not interchangeable: types tell them apart.
            row = made.rows[0]
            (swapped,) = client.predict(
                [Input("inside", pair=(row["text_pair"], row["text"]), truncate=True)], return_logits=True
            ).predictions
            assert not np.allclose(swapped.logits, row["logits"], atol=1e-3)

    def test_real_questions_about_passages(self, serve: Serve, passages: list[dict[str, Any]], tmp_path: Path) -> None:
        made = trained(tmp_path, "minilm", passages, "--max-steps", 2, "--max-length", 128)
        with serve("minilm").client() as client:
            client.register("boolq", data_of(made.adapter))
            answers = client.predict(made.inputs("boolq", truncate=True), return_logits=True).predictions
            assert_equal(answers, made.rows)

    def test_a_pair_that_is_too_long_is_refused_by_its_field(self, serve: Serve, pretrained_pairs: Trained) -> None:
        made = pretrained_pairs
        with serve("minilm").client() as client:
            client.register("inside", data_of(made.adapter))
            longest = max(made.inputs("inside"), key=lambda item: sum(map(len, item.pair or ())))
            error = refused(client, longest)
        assert (error.code, error.reason, error.field) == (Code.INVALID_ARGUMENT, "TEXT_TOO_LONG", "inputs[0].pair")


@pytest.mark.weights
@pytest.mark.slow
class TestPretrainedRoberta:
    def test_trained_and_evaluated_by_command_and_served(
        self, serve: Serve, minilm_as_roberta: Path, questions: list[str], tmp_path: Path
    ) -> None:
        rows = [
            {"text": text, "label": "who" if text.lower().startswith("who") else "other"}
            for text in [q for q in questions if q.startswith("Who")][:15] + questions[:25]
        ]
        flags = ["--max-steps", 4, "--max-length", 32, "--pooling", "cls", "--dense", "own"]
        made = trained(tmp_path, minilm_as_roberta, rows, *flags)
        assert made.adapter.manifest.backbone.model_type == "roberta"
        with serve(minilm_as_roberta).client() as client:
            client.register("who", data_of(made.adapter))
            answers = client.predict(made.inputs("who", truncate=True), return_logits=True).predictions
            assert_equal(answers, made.rows)

    def test_pairs_need_no_token_types(
        self, serve: Serve, minilm_as_roberta: Path, pairs: list[dict[str, Any]], tmp_path: Path
    ) -> None:
        """Its tokenizer tells the texts of a pair apart all the same; the one type of the backbone is for both."""
        made = trained(tmp_path, minilm_as_roberta, pairs, "--max-steps", 2, "--max-length", 48)
        with serve(minilm_as_roberta).client() as client:
            client.register("inside", data_of(made.adapter))
            answers = client.predict(made.inputs("inside", truncate=True), return_logits=True).predictions
            assert_equal(answers, made.rows)

    def test_the_last_position_is_used_and_none_beyond_it(
        self, serve: Serve, minilm_as_roberta: Path, make_adapter: MakeAdapter
    ) -> None:
        """513 positions, the first of which is that of padding: 512 tokens."""
        spec = backbone.load(str(minilm_as_roberta)).spec
        whole = changed(make_adapter(0, spec=spec), max_length=512)
        text = "why " * 510
        with serve(minilm_as_roberta).client() as client:
            client.register("whole", data_of(whole))
            (answer,) = client.predict([Input("whole", text=text)], return_logits=True).predictions
            expected = offline(whole, minilm_as_roberta, [Example(text, 0)])[0]
            np.testing.assert_allclose(answer.logits, expected, atol=1e-4, rtol=1e-5)
            assert refused(client, Input("whole", text=text + "why")).reason == "TEXT_TOO_LONG"
            beyond = msgspec.structs.replace(whole.manifest, max_length=513)
            with pytest.raises(AdamixError, match="512 positions"):
                client.register("beyond", adapter_file.encode(beyond, whole.tensors))


@pytest.fixture(scope="module")
def distilbert(backbone_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DistilBERT with the words of the tiny BERT: no pooler, no token types, other names inside."""
    import torch
    from transformers import DistilBertConfig, DistilBertModel

    directory = tmp_path_factory.mktemp("distilbert")
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64, initializer_range=0.2
    )
    DistilBertModel(config).save_pretrained(directory)
    backbone.load_tokenizer(str(backbone_directory)).save_pretrained(directory)
    return directory


# All placements of one batch: AdaMix, Houlsby, Pfeiffer, both norms, LoRA in the attention and the feed-forward.
PLACEMENTS: dict[str, dict[str, Any]] = {
    "adamix": {},
    "houlsby": {"sites": ("attn_out", "mlp_out"), "rank": 7},
    "pfeiffer": {"sites": ("mlp_norm",), "num_labels": 1},
    "norms": {"sites": ("attn_norm", "mlp_norm"), "dense": "own", "pooling": "cls"},
    "lora": {"kind": "lora", "sites": ("attn_q", "attn_v"), "num_labels": 5},
    "lora-mlp": {"kind": "lora", "sites": ("attn_k", "mlp_in", "mlp_out"), "rank": 9, "pooling": "last"},
    "everywhere": {"sites": ("attn_q", "attn_k", "attn_v", "attn_out", "mlp_in", "mlp_out", "mlp_norm"), "rank": 2},
}


def check_placements(client: Client, name: Path, make_adapter: MakeAdapter) -> None:
    """All placements in one call, and single texts beside pairs."""
    spec = backbone.load(str(name)).spec
    adapters = {task: make_adapter(i, spec=spec, **kind) for i, (task, kind) in enumerate(PLACEMENTS.items())}
    for task, adapter in adapters.items():
        client.register(task, data_of(adapter))
    examples = [*(Example(text, 0) for text in TEXTS), *(Example(text, 0, "the big bird eats") for text in TEXTS)]
    inputs = [
        Input(task, text=e.text) if e.pair is None else Input(task, pair=(e.text, e.pair))
        for e in examples
        for task in adapters
    ]
    answers = client.predict(inputs, return_logits=True).predictions
    for index, (task, adapter) in enumerate(adapters.items()):
        expected = offline(adapter, name, examples)
        for answer, logits in zip(answers[index :: len(adapters)], expected, strict=True):
            assert answer.task == task
            np.testing.assert_allclose(answer.logits, logits, atol=TOLERANCE, rtol=TOLERANCE)


def test_distilbert_serves_every_placement(serve: Serve, distilbert: Path, make_adapter: MakeAdapter) -> None:
    with serve(distilbert).client() as client:
        check_placements(client, distilbert, make_adapter)
        assert client.server_info().backbone["model_type"] == "distilbert"


class TestTinyBert:
    def test_every_placement_in_one_batch(
        self, serve: Serve, backbone_directory: Path, make_adapter: MakeAdapter
    ) -> None:
        with serve(backbone_directory).client() as client:
            check_placements(client, backbone_directory, make_adapter)

    def test_trained_placements_answer_together_as_evaluated(
        self, serve: Serve, backbone_directory: Path, tmp_path: Path
    ) -> None:
        rows = [{"text": f"{text} {word}", "label": word} for text in TEXTS for word in ("red", "blue", "big")]
        flags = {
            "pfeiffer": ["--sites", "mlp_norm"],
            "houlsby": ["--sites", "attn_out,mlp_out", "--experts", 2],
            "lora": ["--method", "lora", "--alpha", 8, "--share", "none"],
            "none": ["--sites", "none", "--experts", 1, "--consistency", 0],
        }
        made = {}
        for task, own in flags.items():
            (tmp_path / task).mkdir()
            common = ["--max-steps", 3, "--max-length", 32, "--lr", "0.05"]
            made[task] = trained(tmp_path / task, backbone_directory, rows, *common, *own)
        sites = {task: {site for _, site in one.adapter.sites()} for task, one in made.items()}
        assert sites == {
            "pfeiffer": {"mlp_norm"},
            "houlsby": {"attn_out", "mlp_out"},
            "lora": {"attn_q", "attn_v"},
            "none": set(),
        }
        with serve(backbone_directory).client() as client:
            for task, one in made.items():
                client.register(task, data_of(one.adapter))
            inputs = [item for task, one in made.items() for item in one.inputs(task)]
            answers = client.predict(inputs, return_logits=True).predictions
        assert_equal(answers, [row for one in made.values() for row in one.rows])

    def test_multilabel(self, serve: Serve, backbone_directory: Path, tmp_path: Path) -> None:
        words = ("red", "blue", "big", "small")
        rows = [
            {"text": f"{text} {a} {b}", "label": sorted({a, b} - {"small"})}
            for text in TEXTS
            for a in words
            for b in words
        ]
        made = trained(tmp_path, backbone_directory, rows, "--max-steps", 30, "--max-length", 32, "--lr", "0.05")
        head = made.adapter.manifest.head
        assert (head.type, head.labels, head.threshold) == ("multilabel", ("big", "blue", "red"), 0.5)
        assert {len(row["prediction"]) for row in made.rows} - {0}
        tensors = {"out_proj__weight": "head.out_proj.weight", "out_proj__bias": "head.out_proj.bias"}
        weights = {name: made.adapter.tensors[key].to_float32() for name, key in tensors.items()}
        with serve(backbone_directory).client() as client:
            client.register("words", data_of(made.adapter))
            answers = client.predict(made.inputs("words"), return_logits=True).predictions
            assert_equal(answers, made.rows)
            for threshold, expected in ((1.0, ()), (0.0, head.labels)):
                other = changed(made.adapter, msgspec.structs.replace(head, threshold=threshold), **weights)
                client.register("words", data_of(other))
                (answer,) = client.predict(made.inputs("words")[:1]).predictions
                assert isinstance(answer.result, MultiLabel)
                assert answer.result.labels == expected
                assert len(answer.result.scores) == 3

    @pytest.mark.parametrize("normalize", [False, True])
    def test_embeddings(
        self, normalize: bool, serve: Serve, backbone_directory: Path, make_adapter: MakeAdapter, spec: BackboneSpec
    ) -> None:
        random = np.random.default_rng(0)
        dense: dict[str, Any] = {
            "dense__weight": random.normal(0, 0.3, (32, 32)),
            "dense__bias": random.normal(0, 0.3, 32),
        }
        common = {"type": "embedding", "normalize": normalize}
        heads: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
            "pooled": ({"pooling": "mean"}, {}, 32),
            "first": ({"pooling": "cls", "dim": 32}, {}, 32),
            "dense": ({"pooling": "mean", "dense": "own", "activation": "tanh"}, dense, 32),
            "narrow": ({"pooling": "mean", "dim": 8}, {"out_proj__weight": random.normal(0, 0.3, (8, 32))}, 8),
        }
        adapters = {
            task: changed(make_adapter(i, spec=spec), HeadSpec(**common, **own), **tensors)
            for i, (task, (own, tensors, _)) in enumerate(heads.items())
        }
        with serve(backbone_directory).client() as client:
            for task, adapter in adapters.items():
                client.register(f"{task}-vectors", data_of(adapter))
            client.register("beside", data_of(make_adapter(9, spec=spec)))
            asked = [Input(f"{task}-vectors", text=text) for task in adapters for text in TEXTS]
            answers = client.predict([*asked, Input("beside", text=TEXTS[0])]).predictions
        for index, (task, adapter) in enumerate(adapters.items()):
            expected = offline(adapter, backbone_directory, [Example(text, 0) for text in TEXTS])
            if normalize:
                expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
            for answer, vector in zip(answers[index * len(TEXTS) :][: len(TEXTS)], expected, strict=True):
                assert isinstance(answer.result, Embedding)
                assert len(answer.result.values) == heads[task][2]
                np.testing.assert_allclose(answer.result.values, vector, atol=TOLERANCE, rtol=TOLERANCE)
        assert isinstance(answers[-1].result, Classification)

    def test_an_embedding_of_a_width_it_does_not_have_is_refused(
        self, serve: Serve, backbone_directory: Path, make_adapter: MakeAdapter, spec: BackboneSpec
    ) -> None:
        good = make_adapter(0, spec=spec)
        head = HeadSpec(type="embedding", pooling="mean", dim=16)
        kept = {name: tensor for name, tensor in good.tensors.items() if not name.startswith("head.")}
        data = adapter_file.encode(msgspec.structs.replace(good.manifest, head=head), kept)
        with serve(backbone_directory).client() as client, pytest.raises(AdamixError, match="hidden size, 32") as error:
            client.register("cut", data)
        assert error.value.reason == "SHAPE_MISMATCH"

    def test_the_limit_of_a_task_to_the_token(
        self, serve: Serve, backbone_directory: Path, make_adapter: MakeAdapter, spec: BackboneSpec
    ) -> None:
        """32 tokens, two of them special: thirty words pass, of thirty-one the first thirty do if asked for."""
        adapter = make_adapter(5, spec=spec)
        exact = " ".join(["cat", "dog", "fish"] * 10)
        ids = backbone.load_tokenizer(str(backbone_directory))(exact)["input_ids"]
        assert len(ids) == adapter.manifest.max_length
        with serve(backbone_directory).client() as client:
            client.register("limited", data_of(adapter))
            inputs = [
                Input("limited", text=exact),
                Input("limited", token_ids=ids),
                Input("limited", text=exact + " bird", truncate=True),
                Input("limited", text=exact + " bird"),
                Input("limited", token_ids=[*ids, 3]),
                Input("limited", token_ids=[*ids, 3], truncate=True),
            ]
            answers = client.predict(inputs, return_logits=True, on_error="return")
            error = refused(client, Input("limited", text=exact + " bird"))
        expected = offline(adapter, backbone_directory, [Example(exact, 0)])[0]
        for answer in answers[:3]:
            np.testing.assert_allclose(answer.logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
        fields = ["inputs[3].text", "inputs[4].token_ids", "inputs[5].token_ids"]
        for answer, field in zip(answers[3:], fields, strict=True):
            assert answer.error is not None
            assert (answer.error.reason, answer.error.field) == ("TEXT_TOO_LONG", field)
        assert error.code is Code.INVALID_ARGUMENT


def test_a_decoder_that_cannot_be_served_is_refused_in_one_sentence(
    start_server: StartServer, backbone_directory: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        rope_parameters=rope,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    backbone.load_tokenizer(str(backbone_directory)).save_pretrained(tmp_path / "llama")
    server = start_server("--backbone", str(tmp_path / "llama"))
    assert server.process.wait(120) == 1
    server._reader.join(10)
    messages = [record["message"] for record in server.records]
    said = [message for message in messages if "rotary" in message]
    assert len(said) == 1, messages
    assert "rotary positions of type 'dynamic' depend on the length of the text" in said[0]
    assert messages.count("child ended") <= 1
