"""Where time goes: each operator belongs to one kind, and what is not an operator is counted, too."""

import time

import pytest
import torch

from adamix_bench.serving.op_times import OpTimes, kind_of, op_times


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("mkldnn::_linear_pointwise", "products of the backbone"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::index_select", "rows gathered and joined"),
        ("aten::addmm_", "products of adapters and heads"),
        ("aten::baddbmm_", "products of adapters and heads"),
        ("aten::add_", "sums"),
        ("aten::tanh", "other operators"),
    ],
)
def test_operators_by_kind(operator: str, kind: str) -> None:
    assert kind_of(operator) == kind


def test_products_and_waiting_are_told_apart() -> None:
    a = torch.randn(600, 600)

    def work() -> None:
        torch.mm(a, a)
        time.sleep(0.02)
        torch.mm(a, a)

    found = op_times(work, repetitions=2)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.seconds["products of adapters and heads"] > 0
    assert found.seconds["between operators"] >= 0.04
    assert found.seconds["attention"] == 0


def test_looking_up_an_embedding_gathers_no_rows_of_a_batch() -> None:
    table, ids = torch.ones(50, 8), torch.tensor([3, 4])
    found = op_times(lambda: torch.nn.functional.embedding(ids, table))
    assert found.seconds["rows gathered and joined"] == 0
    assert found.seconds["other operators"] > 0


def test_nothing_has_no_shares() -> None:
    assert OpTimes({"sums": 0.0}).shares == {"sums": 0.0}
