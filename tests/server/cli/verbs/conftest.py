"""What these tests share: the command against a front end that serves."""

import pytest

from adamix_testing.command import Adamix
from adamix_testing.front_end_fixtures import (
    each_test_leaves_a_clean_loop,
    make_adapter,
    seed,
    spec,
    start_serving,
    store,
    tokenizer_file,
)
from adamix_testing.harness import StartServing, judge_here

__all__ = [
    "each_test_leaves_a_clean_loop",
    "make_adapter",
    "seed",
    "spec",
    "start_serving",
    "store",
    "tokenizer_file",
]


@pytest.fixture
def adamix(start_serving: StartServing, monkeypatch: pytest.MonkeyPatch) -> Adamix:
    judge_here(monkeypatch)
    return Adamix(start_serving)
