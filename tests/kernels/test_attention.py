"""Attention of packed sequences: every form gives what each sequence gives alone, whatever lies beside it."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix_kernels import attention
from adamix_kernels.attention import SequenceLayout, varlen_attention
from adamix_kernels.gpu import attention as kernels
from adamix_kernels.testing import error_ratio

LENGTHS = {
    "one row": (1,),
    "two": (2, 1),
    "around a block": (15, 16, 17),
    "two blocks and one": (33, 1, 32, 5),
    "one long among short": (1, 70, 2, 3),
    "an empty one": (4, 0, 9),
}
# Small blocks, so that short sequences have several; what a device runs is tested with its own.
SMALL = kernels.Plan(head_size=256, block_m=16, block_n=16, num_warps=4, num_stages=1)

# The weights and the result are rounded once each: half a unit in the last place, and a whole one where the interpreter
# cuts bf16 off instead. In fp32 an error of a score makes its weight wrong by as much, some units in all, and the
# exponential of a device adds two. One key too many or too few in the longest sequence here gives 0.01.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

# The interpreter multiplies the zeros of padding by infinities, as a device does without a word.
not_finite = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "plan_for", lambda *_: SMALL)


def tensors(
    rows: int, device: str, dtype: torch.dtype = torch.float32, heads: int = 2, kv_heads: int = 2, head_size: int = 32
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return [torch.randn(rows, n, head_size, generator=generator).to(device, dtype) for n in (heads, kv_heads, kv_heads)]


def expected(
    qkv: list[torch.Tensor], layout: SequenceLayout, *, causal: bool = False, scale: float | None = None
) -> torch.Tensor:
    """In fp64, by the attention of torch, one sequence after another."""
    out = torch.zeros(qkv[0].shape, dtype=torch.float64)
    for start, end in pairwise(layout.indptr.tolist()):
        q, k, v = (t[start:end].cpu().double().transpose(0, 1)[None] for t in qkv)
        if end > start:
            alone = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=causal, scale=scale, enable_gqa=True
            )
            out[start:end] = alone[0].transpose(0, 1)
    return out


def check(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    assert error_ratio(actual.cpu(), wanted) <= TOLERANCE[actual.dtype]


@pytest.mark.usefixtures("small_blocks")
class TestKernel:
    @pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
    @pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
    def test_equals_each_sequence_alone(self, lengths: tuple[int, ...], causal: bool, device: str) -> None:
        layout = SequenceLayout.from_lengths(lengths)
        qkv = tensors(layout.num_rows, device)
        out = varlen_attention(*qkv, layout, causal=causal, implementation="triton")
        check(out, expected(qkv, layout, causal=causal))

    @pytest.mark.parametrize("head_size", [8, 26, 32, 64, 80, 96, 128])
    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    def test_takes_heads_of_any_size_in_every_dtype(self, head_size: int, dtype: torch.dtype, device: str) -> None:
        layout = SequenceLayout.from_lengths([17, 2])
        qkv = tensors(19, device, dtype, head_size=head_size)
        out = varlen_attention(*qkv, layout, causal=True, implementation="triton")
        assert out.dtype == dtype
        check(out, expected(qkv, layout, causal=True))

    @pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (8, 2), (3, 3)])
    def test_query_heads_share_heads_of_keys_and_values(self, heads: int, kv_heads: int, device: str) -> None:
        layout = SequenceLayout.from_lengths([5, 18])
        qkv = tensors(23, device, heads=heads, kv_heads=kv_heads)
        check(varlen_attention(*qkv, layout, implementation="triton"), expected(qkv, layout))

    def test_reads_tensors_where_they_lie(self, device: str) -> None:
        """Parts of one fused projection, heads before rows, features apart."""
        layout = SequenceLayout.from_lengths([20, 3])
        fused = torch.randn(23, 3, 2, 32, generator=torch.Generator().manual_seed(0)).to(device)
        q, k, v = fused.unbind(1)
        k = k.transpose(0, 1).contiguous().transpose(0, 1)
        v = v.transpose(1, 2).contiguous().transpose(1, 2)
        check(varlen_attention(q, k, v, layout, implementation="triton"), expected([q, k, v], layout))

    def test_scales_the_scores(self, device: str) -> None:
        layout = SequenceLayout.from_lengths([19])
        qkv = tensors(19, device)
        out = varlen_attention(*qkv, layout, scale=0.7, implementation="triton")
        check(out, expected(qkv, layout, scale=0.7))

    @not_finite
    @pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
    @pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
    def test_values_that_are_not_finite_stay_in_their_sequence(self, poison: float, causal: bool, device: str) -> None:
        layout = SequenceLayout.from_lengths([3, 17, 1, 14, 5])
        clean = tensors(40, device)
        before = varlen_attention(*clean, layout, causal=causal, implementation="triton")
        spoilt = [t.clone() for t in clean]
        for t in spoilt:
            t[3:20] = poison
            t[21:35] = poison
        out = varlen_attention(*spoilt, layout, causal=causal, implementation="triton")
        others = [0, 1, 2, 20, 35, 36, 37, 38, 39]
        assert torch.equal(out[others], before[others])
        assert not out[3:20].isfinite().any()

    def test_a_row_has_the_same_bits_wherever_its_sequence_lies(self, device: str) -> None:
        alone = tensors(21, device)
        beside = tensors(9, device)
        together = [torch.cat([b, a, b]) for a, b in zip(alone, beside, strict=True)]
        out = varlen_attention(*together, SequenceLayout.from_lengths([9, 21, 9]), implementation="triton")
        wanted = varlen_attention(*alone, SequenceLayout.from_lengths([21]), implementation="triton")
        assert torch.equal(out[9:30], wanted)

    @not_finite
    def test_scores_of_minus_infinity_weigh_nothing(self, device: str) -> None:
        """Even a whole block of them, ahead of the first finite score."""
        q, k, v = tensors(20, device)
        q[..., 0] = 1.0
        k[:16, :, 0] = -float("inf")
        out = varlen_attention(q, k, v, SequenceLayout.from_lengths([20]), implementation="triton")
        seen = [q[16:], k[16:], v[16:]]
        check(out[16:], expected(seen, SequenceLayout.from_lengths([4])))

    def test_unused_tiles_are_left_out(self, device: str) -> None:
        lengths = [2, 33]
        qkv = tensors(35, device)
        exact = varlen_attention(*qkv, SequenceLayout.from_lengths(lengths), implementation="triton")
        padded = SequenceLayout.from_lengths(lengths, max_sequences=9)
        assert len(padded.on(qkv[0].device, 16).tiles) == 35 // 16 + 9
        assert torch.equal(varlen_attention(*qkv, padded, implementation="triton"), exact)

    def test_nothing_to_do_is_done(self, device: str) -> None:
        layout = SequenceLayout.from_lengths([])
        assert varlen_attention(*tensors(0, device), layout, implementation="triton").shape == (0, 2, 32)

    @settings(max_examples=15)
    @given(st.lists(st.integers(0, 20), min_size=1, max_size=4), st.booleans(), st.sampled_from([(1, 1), (2, 1)]))
    def test_equals_the_definition_for_any_lengths(
        self, lengths: list[int], causal: bool, heads: tuple[int, int]
    ) -> None:
        layout = SequenceLayout.from_lengths(lengths)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        qkv = tensors(layout.num_rows, device, heads=heads[0], kv_heads=heads[1], head_size=16)
        out = varlen_attention(*qkv, layout, causal=causal, implementation="triton")
        check(out, expected(qkv, layout, causal=causal))

    def test_is_one_opaque_operation_with_the_shape_it_promises(self, device: str) -> None:
        q, k, v = tensors(20, device)
        tiles = SequenceLayout.from_lengths([20]).on(q.device, 16).tiles
        torch.library.opcheck(torch.ops.adamix.varlen_attention, (q, k, v, tiles, False, 0.2, False))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_size", [64, 128, 256])
def test_every_plan_computes_the_same(dtype: torch.dtype, head_size: int, device: str) -> None:
    layout = SequenceLayout.from_lengths([67, 3])
    qkv = tensors(70, device, dtype, heads=1, kv_heads=1, head_size=head_size)
    check(varlen_attention(*qkv, layout, causal=True, implementation="triton"), expected(qkv, layout, causal=True))


def test_products_may_be_rounded_to_tf32_when_that_is_allowed(device: str) -> None:
    layout = SequenceLayout.from_lengths([67, 3])
    qkv = tensors(70, device)
    out = varlen_attention(*qkv, layout, allow_tf32=True, implementation="triton")
    # Operands of ten bits, in the scores and in the sum.
    assert error_ratio(out.cpu(), expected(qkv, layout)) <= 2e-3


class TestReference:
    @pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
    @pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
    def test_equals_each_sequence_alone(self, lengths: tuple[int, ...], causal: bool) -> None:
        layout = SequenceLayout.from_lengths(lengths)
        qkv = tensors(layout.num_rows, "cpu", heads=4)
        out = varlen_attention(*qkv, layout, causal=causal, scale=0.3)
        check(out, expected(qkv, layout, causal=causal, scale=0.3))

    def test_is_what_autograd_follows(self, device: str) -> None:
        layout = SequenceLayout.from_lengths([3, 4])
        q, k, v = (t.requires_grad_() for t in tensors(7, device))
        varlen_attention(q, k, v, layout)[:3].sum().backward()
        assert k.grad is not None
        assert k.grad[:3].any()
        assert not k.grad[3:].any()


class TestLayout:
    @given(st.lists(st.integers(0, 70), max_size=12), st.integers(1, 40), st.integers(0, 3))
    def test_tiles_hold_every_row_once_with_its_own_sequence(
        self, lengths: list[int], block_rows: int, more: int
    ) -> None:
        layout = SequenceLayout.from_lengths(lengths, max_sequences=len(lengths) + more)
        tiles = layout.tiles(block_rows)
        assert len(tiles) == layout.num_rows // block_rows + min(len(lengths) + more, layout.num_rows)
        used = tiles[tiles[:, 0] >= 0]
        assert (tiles[len(used) :] == attention.UNUSED).all()
        rows = {}
        for first, begin, end in used.tolist():
            assert (first - begin) % block_rows == 0
            rows.update(dict.fromkeys(range(first, min(first + block_rows, end)), (begin, end)))
        assert len(rows) == layout.num_rows
        for begin, end in pairwise(layout.indptr.tolist()):
            assert all(rows[row] == (begin, end) for row in range(begin, end))

    def test_is_uploaded_once_in_a_size_that_does_not_depend_on_the_lengths(self) -> None:
        cpu = torch.device("cpu")
        layouts = [SequenceLayout.from_lengths(lengths, max_sequences=5) for lengths in ([40], [8] * 5, [1, 39])]
        uploaded = [layout.on(cpu, 16) for layout in layouts]
        assert {(each.tiles.shape, each.indptr.shape) for each in uploaded} == {((7, 3), (6,))}
        assert uploaded[2].indptr.tolist() == [0, 1, 40, 40, 40, 40]
        assert layouts[0].on(cpu, 16) is uploaded[0]

    def test_refuses_lengths_that_cannot_be(self) -> None:
        with pytest.raises(ValueError, match="negative"):
            SequenceLayout.from_lengths([3, -1])
        with pytest.raises(ValueError, match="max_sequences"):
            SequenceLayout.from_lengths([3, 1], max_sequences=1)


V2_11 = ("query", "return_aux", "scale", "window_size")
V2_13 = (*V2_11, "enable_gqa", "seqused_k", "block_table", "num_splits")


class TestChoice:
    @pytest.mark.parametrize(
        ("version", "parameters", "causal", "grouped", "keywords"),
        [
            ("2.11.0", V2_11, False, False, {"scale": 0.5}),
            ("2.11.0", V2_11, True, False, {"scale": 0.5, "window_size": (-1, 0)}),
            ("2.11.0", V2_11, False, True, None),
            ("2.12.1", V2_13, True, True, {"scale": 0.5, "window_size": (-1, 0), "enable_gqa": True}),
            ("2.13.0+cu130", V2_13, False, False, {"scale": 0.5, "num_splits": 1}),
            ("2.13.0", (*V2_13, "new"), False, True, {"scale": 0.5, "enable_gqa": True, "num_splits": 1}),
            ("2.11.0", ("query", "scale", "is_causal"), True, False, {"scale": 0.5, "is_causal": True}),
            ("2.10.0", ("query", "is_causal", "return_aux"), True, False, None),
            ("2.13.0", (), False, False, None),
        ],
    )
    def test_asks_a_version_of_torch_only_for_what_it_has(
        self, version: str, parameters: tuple[str, ...], causal: bool, grouped: bool, keywords: dict | None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(torch, "__version__", version)
        assert attention.flash_keywords(parameters, causal=causal, scale=0.5, grouped=grouped) == keywords

    def test_this_torch_can_compute_all_of_it(self) -> None:
        _, parameters = attention._varlen_attn()
        assert attention.flash_keywords(parameters, causal=True, scale=0.5, grouped=False) is not None

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"q": (7, 3, 8)}, "evenly"),
            ({"q": (6, 2, 8)}, "do not fit"),
            ({"k": (7, 2, 9)}, "do not fit"),
            ({"v": (7, 1, 8)}, "do not fit"),
            ({"q": (5, 2, 8), "k": (5, 2, 8), "v": (5, 2, 8)}, "layout 7"),
            ({"q": (7, 2, 257), "k": (7, 2, 257), "v": (7, 2, 257)}, "1 to 256"),
        ],
    )
    def test_refuses_shapes_that_do_not_fit(self, change: dict[str, tuple[int, ...]], message: str) -> None:
        shapes = {"q": (7, 2, 8), "k": (7, 2, 8), "v": (7, 2, 8), **change}
        with pytest.raises(ValueError, match=message):
            varlen_attention(*(torch.zeros(shape) for shape in shapes.values()), SequenceLayout.from_lengths([7]))

    def test_refuses_dtypes_that_differ_and_forms_that_cannot_run(self) -> None:
        layout, (q, k, v) = SequenceLayout.from_lengths([7]), tensors(7, "cpu")
        with pytest.raises(ValueError, match="one dtype"):
            varlen_attention(q, k.half(), v, layout)
        with pytest.raises(ValueError, match="NVIDIA"):
            varlen_attention(q, k, v, layout, implementation="torch")
        with pytest.raises(ValueError, match=r"not torch\.float64"):
            varlen_attention(q.double(), k.double(), v.double(), layout, implementation="triton")
        with pytest.raises(ValueError, match="no implementation"):
            varlen_attention(q, k, v, layout, implementation="fast")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnCuda:
    @pytest.mark.parametrize("implementation", ["torch", "triton"])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("head_size", [32, 64, 80, 96, 128])
    @pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
    def test_both_forms_equal_the_definition(
        self, implementation: str, dtype: torch.dtype, head_size: int, causal: bool
    ) -> None:
        layout = SequenceLayout.from_lengths([1, 300, 17, 64, 65, 2, 512])
        qkv = tensors(layout.num_rows, "cuda", dtype, heads=4, kv_heads=4, head_size=head_size)
        out = varlen_attention(*qkv, layout, causal=causal, implementation=implementation)
        check(out, expected(qkv, layout, causal=causal))

    @pytest.mark.parametrize("implementation", ["torch", "triton"])
    def test_values_that_are_not_finite_stay_in_their_sequence(self, implementation: str) -> None:
        layout = SequenceLayout.from_lengths([70, 30, 200])
        qkv = tensors(300, "cuda", torch.bfloat16)
        before = varlen_attention(*qkv, layout, implementation=implementation)
        for t in qkv:
            t[70:100] = float("nan")
        out = varlen_attention(*qkv, layout, implementation=implementation)
        assert torch.equal(out[:70], before[:70])
        assert torch.equal(out[100:], before[100:])

    def test_half_precision_takes_torch_and_the_rest_the_kernel(self) -> None:
        q, k, v = tensors(3, "cuda", torch.bfloat16)
        assert attention._default(q, k, v, causal=False) == "torch"
        assert attention._default(q.float(), k.float(), v.float(), causal=False) == "triton"

    def test_other_batches_run_in_a_captured_graph(self) -> None:
        captured = SequenceLayout.from_lengths([40, 24], max_sequences=8)
        qkv = tensors(64, "cuda")
        varlen_attention(*qkv, captured, implementation="triton")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = varlen_attention(*qkv, captured, implementation="triton")
        other = replace(captured, indptr=np.cumsum([0, 8, 1, 55]))
        block_rows = kernels.plan_for(4, 32).block_m
        captured.on(qkv[0].device, block_rows).tiles.copy_(other.on(qkv[0].device, block_rows).tiles)
        graph.replay()
        check(out, expected(qkv, other))
