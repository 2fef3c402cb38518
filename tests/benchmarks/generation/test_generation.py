"""The benchmark of generation: its requests, its sums, and a whole run on a tiny decoder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from adamix.errors import AdamixError, InvalidConfig
from adamix_bench.cli import bench
from adamix_bench.generation.report import Cell, Report, plot
from adamix_bench.generation.settings import BF16, CONTINUOUS, FLOOR, FP32, PLAIN, SERVED, Settings
from adamix_bench.generation.turns import Turn, timed
from adamix_bench.generation.workload import Workload
from adamix_testing import tasks
from adamix_testing.word_tokenizers import decoder_words

IN_PROCESS = f"{FP32},{FLOOR},{PLAIN}"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two small random layers, with room for the longest prompt and text."""
    found = tmp_path_factory.mktemp("decoder")
    tokenizer = decoder_words(tasks.SPOKEN_WORDS)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            max_position_embeddings=256,
            initializer_range=0.3,
        )
    ).save_pretrained(found)
    tokenizer.save_pretrained(found)
    return found


def test_the_requests_are_those_of_a_seed_and_have_their_own_lengths() -> None:
    drawn = Workload.draw(64, 1000, 3)
    assert Workload.draw(64, 1000, 3) == drawn != Workload.draw(64, 1000, 4)
    lengths = [len(prompt) for prompt in drawn.prompts]
    assert 16 <= min(lengths) < 24 < 104 < max(lengths) <= 112
    assert 32 <= min(drawn.new_tokens) < 40 < 88 < max(drawn.new_tokens) <= 96
    assert all(3 <= token < 1000 for prompt in drawn.prompts for token in prompt)
    alone = Workload.draw(1, 1000, 3)
    assert ([len(prompt) for prompt in alone.prompts], list(alone.new_tokens)) == ([64], [64])
    assert drawn.first(2).new_tokens == drawn.new_tokens[:2]


def test_a_way_that_does_less_work_is_no_comparison() -> None:
    workload = Workload([[3], [4]], [2, 1])
    clock = iter([1.0, 3.5])
    turn = timed(lambda: [[7, 8], [9]], workload, lambda: next(clock))
    assert (turn.num_tokens, turn.cpu_s, turn.tokens_per_cpu_s) == (3, 2.5, 1.2)
    with pytest.raises(AdamixError, match=r"texts of \[2, 2\] tokens instead of \[2, 1\]"):
        timed(lambda: [[7, 8], [9, 9]], workload)


def turns(seconds: Sequence[float], texts: Any = ((1, 2), (3,))) -> list[Turn]:
    return [Turn(wall, 2 * wall, 3, texts) for wall in seconds]


def test_ratios_are_taken_turn_by_turn_over_continuous_batching(tmp_path: Path) -> None:
    report = Report(tmp_path, {}, {"cores": 2}, ["bench", "generation"])
    report.enter(
        {
            Cell(FP32, 2): turns([1.0, 2.0, 4.0]),
            Cell(FP32, 2, 2): turns([2.0, 4.0, 5.0]),
            Cell(CONTINUOUS, 2): turns([3.0, 4.0, 20.0], ((1, 2), (9,))),
            Cell(BF16, 2): [],
        }
    )
    report.same_texts(report.turns)
    report.enter_open_loop(2.0, [0.1, 0.3], [0.01])
    document = report.save()
    assert json.loads((tmp_path / "generation.json").read_text()) == document
    rows = {(row["way"], row["adapters"]): row for row in document["rows"]}
    assert set(rows) == {(FP32, 0), (FP32, 2), (CONTINUOUS, 0)}
    assert (rows[FP32, 0]["tokens_per_s"], rows[FP32, 0]["ratio"], rows[FP32, 0]["cpu_ratio"]) == (1.5, 3.0, 3.0)
    assert (rows[FP32, 2]["concurrency"], rows[FP32, 2]["ratio"], rows[CONTINUOUS, 0]["ratio"]) == (2, 1.5, 1.0)
    assert document["equal"] == {"same_texts": {"2": 0.5}}
    assert (document["open_loop"]["texts"], document["open_loop"]["texts_per_s"]) == (2, 2.0)
    assert document["open_loop"]["first_token_s"]["p50"] == pytest.approx(0.2)
    goals = {goal.name: goal for goal in report.goals}
    assert goals["adapters.2"].measured is not None
    assert goals["adapters.2"].measured.median == 0.5
    assert set(goals) == {"continuous.2", "continuous.2.cpu", "adapters.2", "adapters.2.cpu"}
    assert plot(report) == tmp_path / "generation.png"


def test_targets_are_of_the_issued_concurrencies(tmp_path: Path) -> None:
    report = Report(tmp_path, {}, {}, [])
    for count in (1, 8, 32, 64):
        report.enter({Cell(way, count): turns([1.0]) for way in (FP32, CONTINUOUS, FLOOR, BF16)})
        report.enter({Cell(way, count, count): turns([1.0]) for way in (FP32, SERVED)})
    targets = {goal.name: goal.target for goal in report.goals if goal.target is not None}
    expected = {
        "continuous.1": 1.2,
        "continuous.8": 1.7,
        "continuous.32": 2.2,
        "continuous.64": 3.3,
        "adapters.64": 0.85,
    }
    assert targets == expected | {f"served.{count}": 0.95 for count in (1, 8, 32, 64)}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"concurrency": ()}, "concurrency"),
        ({"concurrency": (65,)}, "concurrency"),
        ({"ways": ("vllm",)}, "only"),
        ({"repetitions": 0}, "repetitions"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidConfig) as caught:
        Settings(**changes)
    assert caught.value.field == field


def call(*words: object) -> dict[str, Any]:
    result = CliRunner().invoke(bench, ["generation", *map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_a_run_on_a_tiny_decoder(directory: Path, tmp_path: Path) -> None:
    words = ("--backbone", directory, "--out", tmp_path, "--threads", 1, "--repetitions", 1)
    document = call(*words, "--concurrency", 1, "--concurrency", 2, "--only", IN_PROCESS, "--profile")
    found = [(row["way"], row["concurrency"], row["adapters"]) for row in document["rows"]]
    assert found == [
        *((FP32, 1, 0), (FP32, 1, 1), (CONTINUOUS, 1, 0), (FLOOR, 1, 0), (PLAIN, 1, 0)),
        *((FP32, 2, 0), (FP32, 2, 1), (FP32, 2, 2), (CONTINUOUS, 2, 0), (FLOOR, 2, 0), (PLAIN, 2, 0)),
    ]
    assert all(row["tokens_per_s"] > 0 and row["ratio"] > 0 for row in document["rows"])
    assert len({row["tokens"] for row in document["rows"] if row["concurrency"] == 2}) == 1
    assert document["equal"]["same_texts"] == {"1": 1.0, "2": 1.0}
    assert (document["complete"], document["failures"]) == (True, {})
    for shares in (document["profiles"]["1"], document["profiles"]["2"]):
        assert len(shares) == 14
        assert 0.3 < sum(share["share"] for share in shares) <= 1
        assert all(share["ms"] > 0 and share["calls"] > 0 for share in shares)
    assert {path.name for path in tmp_path.iterdir()} == {"generation.json", "generation.png"}


@pytest.mark.long
def test_a_run_of_all_ways_with_a_server(directory: Path, tmp_path: Path) -> None:
    words = ("--backbone", directory, "--out", tmp_path, "--threads", 1, "--repetitions", 1)
    document = call(*words, "--concurrency", 2, "--only", f"{FP32},{SERVED}")
    assert (SERVED, 2, 2) in {(row["way"], row["concurrency"], row["adapters"]) for row in document["rows"]}
    assert "served.2" in {goal["name"] for goal in document["goals"]}
    assert document["open_loop"]["texts"] == 48
    for name in ("first_token_s", "inter_token_s"):
        waits = document["open_loop"][name]
        assert 0 < waits["p50"] <= waits["p90"] <= waits["p99"]
