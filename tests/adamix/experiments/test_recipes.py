"""Recipes: the published numbers, nothing beside them, and flags that win over them."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, PreTrainedTokenizerFast
from typer.testing import CliRunner

from adamix.cli import app
from adamix.config import AdapterConfig, HeadConfig, MixtureConfig, TrainConfig, TrainingPlan
from adamix.data import TaskData
from adamix.errors import InvalidConfig
from adamix.experiments.recipes import RECIPES, Recipe, find
from adamix.experiments.settings import SETTINGS
from adamix.files.mixture_file import read_mixture

# Hyper-parameters of the released scripts: lr, epochs, batch, rank, experts, warm-up, weight decay, tokens.
PUBLISHED = {
    "glue-bert-base": (4e-4, 40, 64, 48, 4, 0.06, 0.1, 128),
    "glue-roberta-large": (3e-4, 20, 64, 16, 4, 0.06, 0.1, 128),
    "e2e-gpt2-medium": (2e-4, 20, 8, 4, 8, 2000, 0.01, 512),
    "webnlg-gpt2-medium": (2e-4, 25, 8, 4, 8, 2500, 0.01, 512),
    "dart-gpt2-medium": (2e-4, 20, 8, 4, 8, 2000, 0.0, 512),
    "e2e-gpt2-medium-adapter": (2e-4, 20, 8, 8, 8, 2000, 0.01, 512),
    "webnlg-gpt2-medium-adapter": (2e-4, 25, 8, 8, 8, 2500, 0.01, 512),
    "dart-gpt2-medium-adapter": (2e-4, 20, 8, 8, 8, 2000, 0.0, 512),
}
# (trained, merged) parameters of the published backbones, for the sites and shapes of the recipes.
COUNTS = {
    "glue-bert-base": (2_223_360, 894_528),
    "glue-roberta-large": (1_992_192, 811_392),
    "e2e-gpt2-medium": (1_769_472, 393_216),
    "e2e-gpt2-medium-adapter": (1_795_584, 417_984),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_has_the_published_numbers(name: str) -> None:
    recipe = find(name)
    train, adapter = recipe.train, recipe.adapter
    warmup = train.warmup_ratio if train.warmup_steps is None else train.warmup_steps
    found = (train.learning_rate, train.epochs, train.batch_size, adapter.rank, recipe.mixture.num_experts)
    assert (*found, warmup, train.weight_decay, train.max_length) == PUBLISHED[name]
    assert recipe.mixture.share == "up"
    is_nlg = recipe.model_type == "gpt2"
    assert recipe.mixture.consistency == (100.0 if is_nlg else 1.0)
    assert train.max_grad_norm == (0.0 if is_nlg else 1.0)
    assert train.label_smoothing == (0.1 if name.startswith(("e2e", "webnlg")) else 0.0)
    assert recipe.task_type == ("generation" if is_nlg else None)


def test_the_loras_and_the_heads_are_the_published_ones() -> None:
    for data in ("e2e", "webnlg", "dart"):
        lora, adapter = find(f"{data}-gpt2-medium").adapter, find(f"{data}-gpt2-medium-adapter").adapter
        assert (lora.kind, lora.scale, lora.sites) == ("lora", 8.0, ("attn_q", "attn_v"))
        assert lora.lora_dropout == (0.0 if data == "dart" else 0.1)
        assert (adapter.kind, adapter.scale, adapter.sites) == ("bottleneck", 1.0, ("mlp_out",))
        assert adapter.activation == "gelu_tanh"
    assert (find("glue-bert-base").head.pooling, find("glue-bert-base").head.dense) == ("cls", "backbone")
    roberta = find("glue-roberta-large").head
    assert (roberta.pooling, roberta.dense, roberta.activation, roberta.dropout) == ("cls", "own", "tanh", 0.1)


@pytest.mark.parametrize("name", COUNTS)
def test_the_parameters_are_as_many_as_published(name: str) -> None:
    recipe = find(name)
    hidden, layers, rank = recipe.hidden_size, recipe.num_layers, recipe.adapter.rank
    copies, sites = recipe.mixture.num_experts, len(recipe.adapter.sites)
    down, up = (hidden * rank, hidden * rank) if recipe.adapter.kind == "lora" else (hidden * rank + rank,) * 2
    if recipe.adapter.kind != "lora":
        up = hidden * rank + hidden
    trained, merged = (layers * sites * (number * down + up) for number in (copies, 1))
    assert (trained, merged) == COUNTS[name]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_nothing_that_it_does_not_name(name: str) -> None:
    recipe = find(name)
    defaults = {
        "adapter": AdapterConfig.of(recipe.adapter.kind),
        "mixture": MixtureConfig(),
        "head": HeadConfig(),
        "train": TrainConfig(),
    }
    named = {(SETTINGS[name].part, SETTINGS[name].field) for name in recipe.provenance}
    for part, default in defaults.items():
        for field in dataclasses.fields(default):
            value = getattr(getattr(recipe, part), field.name)
            assert (part, field.name) in named or value == getattr(default, field.name), field.name
    assert recipe.settings().keys() - {"task_type"} == set(recipe.provenance)


def test_a_recipe_must_say_where_its_settings_are_from() -> None:
    with pytest.raises(InvalidConfig, match="sets lr and does not say where"):
        Recipe(
            name="x",
            model_type="bert",
            backbone="b",
            hidden_size=1,
            num_layers=1,
            train=TrainConfig(learning_rate=0.5),
            provenance={},
        )
    with pytest.raises(InvalidConfig, match="is none of glue-bert-base"):
        find("glue-gpt2")
    with pytest.raises(InvalidConfig, match="is for bert backbones such as google-bert/bert-base-uncased"):
        find("glue-bert-base").check_backbone("roberta")


class TestCommand:
    def _train(self, backbone: Path, csv: Path, out: Path, *flags: object) -> Any:
        arguments = ["train", "--backbone", backbone, "--data", csv, "--out", out, "--no-validate", *flags]
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def test_flags_win_over_the_recipe_and_all_is_told(
        self, backbone_directory: Path, csv: Path, tmp_path: Path
    ) -> None:
        flags = ["--recipe", "glue-bert-base", "--max-length", 32, "--max-steps", 2, "--lr", "0.01", "--json"]
        result = self._train(backbone_directory, csv, tmp_path / "run", *flags, "--experts", 2)
        assert result.exit_code == 0, result.stderr
        document = json.loads(result.stdout)["recipe"]
        assert document["name"] == "glue-bert-base"
        given = {"max_length": 32, "max_steps": 2, "lr": 0.01, "experts": 2}
        assert document["given"] == given
        assert document["settings"]["rank"] == 48
        assert not document["settings"].keys() & {*given, "epochs"}
        assert "recipe glue-bert-base: " in result.stderr
        assert "given instead: experts 2, max-length 32, lr 0.01, max-steps 2" in result.stderr
        run = json.loads((tmp_path / "run" / "run.json").read_text())
        assert (run["adapter"]["rank"], run["mixture"]["num_experts"]) == (48, 2)
        assert (run["head"]["pooling"], run["head"]["dense"]) == ("cls", "backbone")
        train = run["train"]
        assert (train["learning_rate"], train["batch_size"], train["max_steps"]) == (0.01, 64, 2)

    def test_a_warm_up_must_end_before_the_run_does(
        self, tmp_path: Path, csv: Path, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        sizes = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
        GPT2Model(GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt2")
        tokenizer.save_pretrained(tmp_path / "gpt2")
        flags = ["--recipe", "e2e-gpt2-medium", "--task-type", "classification", "--max-length", 32, "--max-steps", 2]
        flags += ["--pooling", "last", "--batch-size", 4]
        result = self._train(tmp_path / "gpt2", csv, tmp_path / "run", *flags)
        assert result.exit_code == 2
        assert "warmup-steps 2000 is not below the 2 steps of the run" in result.stderr
        assert not (tmp_path / "run").exists()
        result = self._train(tmp_path / "gpt2", csv, tmp_path / "run", *flags, "--warmup-ratio", 0.5)
        assert result.exit_code == 0, result.stderr
        train = json.loads((tmp_path / "run" / "run.json").read_text())["train"]
        assert (train["warmup_steps"], train["warmup_ratio"], train["max_grad_norm"]) == (None, 0.5, 0.0)

    def test_a_recipe_of_generation_trains_a_decoder(
        self, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, colours: TaskData
    ) -> None:
        sizes = {"vocab_size": 64, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
        GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt2")
        ending = copy.deepcopy(tokenizer)
        ending.eos_token = ending.bos_token = "[SEP]"
        ending.save_pretrained(tmp_path / "gpt2")
        lines = [json.dumps({"source": e.text, "target": "red one"}) for e in colours.examples]
        (tmp_path / "pairs.jsonl").write_text("\n".join(lines) + "\n")
        flags = ["--recipe", "e2e-gpt2-medium", "--max-length", 32, "--max-steps", 2, "--warmup-steps", 1, "--json"]
        result = self._train(tmp_path / "gpt2", tmp_path / "pairs.jsonl", tmp_path / "run", *flags)
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["recipe"]["settings"]["task_type"] == "generation"
        mixture = read_mixture(tmp_path / "run").manifest
        assert (mixture.num_experts, mixture.share, mixture.adapter.scaling) == (8, "up", 8.0)
        assert (mixture.adapter.head.type, mixture.adapter.training.consistency) == ("causal_lm", 100.0)

    def test_what_does_not_fit_is_refused(self, backbone_directory: Path, csv: Path, tmp_path: Path) -> None:
        for flags, message in (
            (["--recipe", "glue-roberta-large"], "is for roberta backbones such as FacebookAI/roberta-large"),
            (["--recipe", "nothing"], "--recipe nothing is none of"),
            (["--recipe", "glue-bert-base", "--epochs", 1, "--max-steps", 2], "--epochs or --max-steps, not both"),
            (["--warmup-steps", 1, "--warmup-ratio", 0.1], "--warmup-steps or --warmup-ratio, not both"),
            (["--recipe", "glue-bert-base", "--method", "lora", "--activation", "relu"], "activation belongs to a"),
        ):
            result = self._train(backbone_directory, csv, tmp_path / "run", *flags)
            assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
        assert not (tmp_path / "run").exists()

    def test_they_are_listed_with_their_sources(self) -> None:
        result = CliRunner().invoke(app, ["recipes", "--json"])
        listed = {recipe["name"]: recipe for recipe in json.loads(result.stdout)["recipes"]}
        assert listed.keys() == PUBLISHED.keys()
        assert listed["glue-bert-base"]["settings"]["consistency"] == {"value": 1.0, "source": "paper"}
        assert listed["glue-roberta-large"]["settings"]["consistency"] == {"value": 1.0, "source": "release"}
        one = CliRunner().invoke(app, ["recipes", "e2e-gpt2-medium"]).stdout
        assert "--warmup-steps" in one
        assert CliRunner().invoke(app, ["recipes", "nothing"]).exit_code == 2


def test_no_clipping_is_no_clipping(tmp_path: Path, backbone: Any, tokenizer: Any, colours: TaskData) -> None:
    """One step of a head alone: clipping at a tiny norm shrinks AdamW's first step by nothing, but plain sums differ.

    AdamW's first step does not depend on the gradient's size; so two steps are made, whose gradients differ in size.
    """
    from adamix.training.train import train

    found = {}
    for norm in (0.0, 1e6, 1e-3):
        config = TrainConfig(max_steps=3, batch_size=8, max_length=32, max_grad_norm=norm)
        out = tmp_path / str(norm)
        plan = TrainingPlan(adapter=AdapterConfig(sites=()), mixture=MixtureConfig.single(), train=config)
        train(plan, backbone, tokenizer, colours, None, out)
        found[norm] = read_mixture(out).tensors["head.out_proj.weight"].to_float32()
    assert abs(found[0.0] - found[1e6]).max() == 0.0
    assert abs(found[0.0] - found[1e-3]).max() > 1e-6
