"""Every form computes the same batch: what is compared is the time of the same answer."""

import pytest
import torch

from adamix_bench.kernels import clocks, forms
from adamix_bench.kernels.batches import Adapters, Batch
from adamix_bench.kernels.cells import Cell
from adamix_bench.kernels.forms import ON_CPU, ON_CUDA
from adamix_kernels import cpu, reference
from adamix_kernels.testing import assert_close, cast

CELLS = (Cell(1, 1, 64, 8), Cell(8, 8, 64, 16), Cell(21, 4, 96, 8))


def expected(batch: Batch) -> torch.Tensor:
    weights = cast(batch.adapters.weights, torch.float64, str(batch.x.device))
    return reference.bottleneck_(batch.x.double(), batch.segments, weights)


@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("form", sorted({*ON_CUDA, *ON_CPU} - {"grouped_mm"}))
def test_a_form_computes_what_the_reference_computes(
    form: str, cell: Cell, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    # What is compiled is the same function; compiling it takes longer than all of this.
    monkeypatch.setattr(torch, "compile", lambda **_: lambda function: function)
    batches = [Batch.random(cell, torch.float32, torch.device(device)) for _ in range(2)]
    with torch.inference_mode():
        for call, batch in zip(forms.calls(form, batches), batches, strict=True):
            wanted = expected(batch)
            assert_close(call(), wanted, form)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_grouped_mm_computes_what_the_reference_computes(cell: Cell, device: str) -> None:
    batch = Batch.random(cell, torch.bfloat16, torch.device(device))
    with torch.inference_mode():
        assert_close(forms.calls("grouped_mm", [batch])[0](), expected(batch))


def test_a_form_of_the_cpu_is_the_one_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, ran = Batch.random(CELLS[2], torch.float32, torch.device("cpu")), []
    monkeypatch.setattr(cpu, "_loop", lambda *_: ran.append(f"loop on {torch.get_num_threads()}"))
    monkeypatch.setattr(cpu, "_tiles", lambda *_: ran.append("tiles"))
    threads = torch.get_num_threads()
    for form in ("loop", "loop_on_one_thread", "tiles"):
        forms.calls(form, [batch])[0]()
    assert ran == [f"loop on {threads}", "loop on 1", "tiles"]


def test_adapters_lie_where_the_kernels_can_read_them_and_differ(device: str) -> None:
    adapters = Adapters.random(Cell(4, 3, 64, 8), torch.float32, torch.device(device))
    assert adapters.table.records.ranks.tolist() == [0, 8, 8, 8]
    assert adapters.table.records.table[0].tolist() == [0] * 8
    first, second = adapters.weights[1], adapters.weights[2]
    assert first is not None
    assert second is not None
    assert not torch.equal(first.down, second.down)
    # The CPU's loop takes bias and matrix as one.
    assert first.low_rank.bias_and_up is not None


def test_grouped_mm_is_compared_in_bf16_only() -> None:
    assert forms.why_not("grouped_mm", torch.bfloat16) is None
    assert forms.why_not("grouped_mm", torch.float32) is not None


def test_on_a_cpu_every_call_finds_the_rows_as_they_were() -> None:
    rows, seen = torch.ones(3, 4), []

    def change() -> None:
        seen.append(rows.clone())
        rows.add_(1)

    clocks.in_turns_on_cpu({"one": change, "other": change}, rows)
    assert len(seen) > 4
    assert all(torch.equal(each, torch.ones(3, 4)) for each in seen)


@pytest.mark.parametrize("form", [*ON_CUDA[:3], "grouped_mm"])
def test_forms_that_a_graph_replays_leave_their_rows_alone(form: str, device: str) -> None:
    batch = Batch.random(CELLS[2], torch.bfloat16, torch.device(device))
    before = batch.x.clone()
    with torch.inference_mode():
        forms.calls(form, [batch])[0]()
    assert torch.equal(batch.x, before)
