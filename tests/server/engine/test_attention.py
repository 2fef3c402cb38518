"""Packed attention as it runs on a device: on the rows as they lie, here in the interpreter."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from adamix.backbones.backbone import Backbone
from adamix.errors import FailedPrecondition
from adamix.files.adapter_file import AdapterFile
from adamix_kernels.attention import SequenceLayout, varlen_attention
from adamix_server.engine import attention
from adamix_server.engine.attention import PackedLayout, lay_out, packed
from adamix_server.engine.model_runner import ModelRunner
from adamix_server.engine.request import Request
from adamix_server.engine.residency.packing import pack
from adamix_server.engine.residency.slot_bank import SlotBank

CPU = torch.device("cpu")
EXTENT = 1 << 16
# fp32 on both sides: only the order of sums differs, over two layers of width 32 with O(1) states.
TOLERANCE = 2e-5


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("kernels that are compiled do not run on a CPU; tests marked gpu run them on the device")
    monkeypatch.setattr(attention, "keeps_apart", lambda _device: True)
    monkeypatch.setattr(attention, "varlen_attention", partial(varlen_attention, implementation="triton"))


def rows_for(slots: list[int]) -> list[Request]:
    random = np.random.default_rng(len(slots))
    return [
        Request.of_tokens(random.integers(0, 64, random.integers(1, 40), dtype=np.int32), None, slot) for slot in slots
    ]


def runner_with(
    backbone: Backbone, adapters: list[AdapterFile], factors: dict[int, float] | None = None
) -> ModelRunner:
    bank = SlotBank(len(adapters), EXTENT * len(adapters), torch.float32, CPU)
    runner = ModelRunner(backbone, bank)
    for slot, adapter in enumerate(adapters, start=1):
        contents = pack(adapter, torch.float32)
        contents = replace(contents, data=contents.data * (factors or {}).get(slot, 1.0))
        bank.write(slot, (slot - 1) * EXTENT, contents)
    return runner


def test_a_cpu_gets_blocks_and_a_device_the_boundaries_alone() -> None:
    assert isinstance(lay_out([3, 4], CPU, torch.float32), PackedLayout)
    on_device = lay_out([3, 4], torch.device("cuda"), torch.float32)
    assert isinstance(on_device, SequenceLayout)
    assert on_device.indptr.tolist() == [0, 3, 7]


def test_a_batch_answers_as_it_does_in_blocks(
    as_on_a_device: None, make_backbone: Callable[[], Backbone], make_adapter: Callable[..., AdapterFile]
) -> None:
    adapters = [make_adapter(0), make_adapter(1, kind="lora", sites=("attn_q", "attn_v"))]
    rows = rows_for([0, 1, 1, 2, 2])
    answers = runner_with(make_backbone(), adapters).hidden_states(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "keeps_apart", lambda _device: False)
        expected = runner_with(make_backbone(), adapters).hidden_states(rows)
    torch.testing.assert_close(answers, expected, atol=TOLERANCE, rtol=1e-4)


# The interpreter multiplies the zeros of padding by infinities, as a device does without a word.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_values_that_are_not_finite_reach_no_neighbour_in_the_first_pass(
    as_on_a_device: None,
    make_backbone: Callable[[], Backbone],
    make_adapter: Callable[..., AdapterFile],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapters = [make_adapter(0), make_adapter(1, kind="lora", sites=("attn_k", "attn_v")), make_adapter(2)]
    rows = rows_for([1, 2, 3])
    expected = runner_with(make_backbone(), adapters).run(rows)
    runner = runner_with(make_backbone(), adapters, factors={2: 1e38})
    passes = []
    forward = runner._forward
    monkeypatch.setattr(runner, "_forward", lambda *arguments: passes.append(1) or forward(*arguments))
    answers = runner.run(rows)
    assert not np.isfinite(answers[1]).all()
    for position in (0, 2):
        np.testing.assert_allclose(answers[position], expected[position], atol=TOLERANCE)
    assert len(passes) == 1


@pytest.mark.parametrize("keyword", ["sliding_window", "softcap", "is_causal"])
def test_refuses_what_it_does_not_compute(keyword: str) -> None:
    x = torch.randn(1, 2, 3, 4)
    with packed(SequenceLayout.from_lengths([3])), pytest.raises(FailedPrecondition, match="does not support"):
        attention.packed_attention(nn.Module(), x, x, x, None, **{keyword: True})


def test_refuses_heads_that_no_kernel_takes() -> None:
    x = torch.randn(1, 1, 3, 300)
    with packed(SequenceLayout.from_lengths([3])), pytest.raises(FailedPrecondition, match="up to 256"):
        attention.packed_attention(nn.Module(), x, x, x, None)


def on_cuda(dtype: torch.dtype, tolerance: float) -> object:
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.param("cuda", dtype, tolerance, marks=[pytest.mark.gpu, skip], id=f"cuda {dtype}")


@pytest.mark.parametrize(
    ("device", "dtype", "tolerance"),
    # fp32: order of sums; 16-bit: a few units in the last place of O(1) values.
    [
        pytest.param("cpu", torch.float32, 1e-5, id="cpu"),
        on_cuda(torch.float32, 1e-5),
        on_cuda(torch.float16, 4e-3),
        on_cuda(torch.bfloat16, 3e-2),
    ],
)
@pytest.mark.parametrize("head_size", [8, 26, 64])
def test_equals_attention_of_each_sequence_alone(
    device: str, dtype: torch.dtype, tolerance: float, head_size: int
) -> None:
    layout = SequenceLayout.from_lengths([7, 1, 130, 64])
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 202, 4, head_size).to(device, dtype).transpose(1, 2) for _ in range(3))
    with packed(layout):
        together, _ = attention.packed_attention(nn.Module(), q, k, v, None, scaling=0.3)
    for start, end in pairwise(layout.indptr.tolist()):
        alone = torch.nn.functional.scaled_dot_product_attention(
            *(t[:, :, start:end].float() for t in (q, k, v)), scale=0.3
        )
        actual = together[:, start:end].float()
        torch.testing.assert_close(actual, alone.transpose(1, 2), atol=tolerance, rtol=tolerance)
