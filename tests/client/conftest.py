"""What these tests share: a front end that serves."""

from adamix_testing.front_end_fixtures import (
    each_test_leaves_a_clean_loop,
    harness,
    make_adapter,
    seed,
    settings,
    spec,
    start_serving,
    store,
    tokenizer_file,
)

__all__ = [
    "each_test_leaves_a_clean_loop",
    "harness",
    "make_adapter",
    "seed",
    "settings",
    "spec",
    "start_serving",
    "store",
    "tokenizer_file",
]
