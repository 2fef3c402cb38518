"""Attention over pages: every form against the definition in fp64, and what a row's result may not depend on."""

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix_kernels import native, paged
from adamix_kernels.native.library import VARIANTS
from adamix_kernels.paged import PAGE_TOKENS, PagedBatch, paged_attention
from adamix_kernels.testing import assert_close

FORMS = ["reference", "torch", "native"]

# (tokens before, new tokens): one token, both sides of a page's end, whole pages, long chunks, none.
ODD_LENGTHS = [(0, 1), (14, 1), (15, 1), (16, 1), (333, 1), (0, 16), (17, 31), (15, 2), (5, 0), (0, 70)]


@dataclass
class Case:
    """A cache in which everything that no sequence has written is NaN, and the new tokens of some sequences."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    k_pages: torch.Tensor
    v_pages: torch.Tensor
    starts: list[int]
    lengths: list[int]
    pages: list[list[int]]

    @classmethod
    def of(cls, lengths, *, heads=(6, 2), size=32, dtype=torch.float32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        starts, new = [start for start, _ in lengths], [count for _, count in lengths]
        needed = [-(-(start + count) // PAGE_TOKENS) for start, count in lengths]
        shuffled = (torch.randperm(sum(needed), generator=generator) + 1).tolist()
        pages = [[shuffled.pop() for _ in range(count)] for count in needed]
        k_pages = torch.full((sum(needed) + 1, heads[1], size, PAGE_TOKENS), torch.nan, dtype=dtype)
        v_pages = torch.full((sum(needed) + 1, heads[1], PAGE_TOKENS, size), torch.nan, dtype=dtype)
        before = PagedBatch.of([0] * len(starts), starts, pages)
        shape = before.num_rows, heads[1], size
        k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
        paged.write(k, v, k_pages, v_pages, before)
        q, k, v = (
            torch.randn(sum(new), each, size, generator=generator, dtype=torch.float64).to(dtype)
            for each in (heads[0], heads[1], heads[1])
        )
        return cls(q, k, v, k_pages, v_pages, starts, new, pages)

    @property
    def batch(self):
        return PagedBatch.of(self.starts, self.lengths, self.pages)

    @property
    def num_sequences(self):
        return len(self.starts)

    def rows(self, sequence):
        return slice(sum(self.lengths[:sequence]), sum(self.lengths[: sequence + 1]))

    def wide(self):
        tensors = (self.q, self.k, self.v, self.k_pages, self.v_pages)
        return Case(*(t.double() for t in tensors), self.starts, self.lengths, self.pages)

    def only(self, sequences):
        """Of these sequences, in this order; the cache as it is."""
        parts = [torch.cat([t[self.rows(s)] for s in sequences]) for t in (self.q, self.k, self.v)]
        of = ([each[s] for s in sequences] for each in (self.starts, self.lengths, self.pages))
        return Case(*parts, self.k_pages, self.v_pages, *of)

    def run(self, form, **keywords):
        """On a copy of the cache."""
        pages = self.k_pages.clone(), self.v_pages.clone()
        return paged_attention(self.q, self.k, self.v, *pages, self.batch, implementation=form, **keywords)


@pytest.fixture(params=VARIANTS)
def variant(request, library):
    """The native kernels for each set of instructions in turn."""
    before = library.variant
    if not library.use_kernels(request.param):
        pytest.skip("this processor cannot run them")
    yield request.param
    library.use_kernels(before)


@pytest.fixture(params=FORMS)
def form(request):
    if request.param == "native":
        request.getfixturevalue("library")
    return request.param


@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (4, 1), (16, 2), (14, 2)])
@pytest.mark.parametrize("window", [None, 1, 20])
def test_every_form_equals_the_definition(heads, window, form):
    case = Case.of(ODD_LENGTHS, heads=heads)
    assert_close(case.run(form, window=window), case.wide().run("reference", window=window))


@pytest.mark.parametrize("size", [3, 16, 20, 64, 80, 128])
def test_heads_of_every_size(size, variant):
    case = Case.of([(30, 1), (7, 12), (0, 1)], heads=(6, 2), size=size)
    for window in (None, 9):
        assert_close(case.run("native", window=window), case.wide().run("reference", window=window))


@pytest.mark.parametrize("form", ["reference", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(form, dtype):
    case = Case.of(ODD_LENGTHS, dtype=dtype)
    assert_close(case.run(form), case.wide().run("reference"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 20])
def test_on_a_device_attention_equals_the_definition(window, dtype):
    case = Case.of(ODD_LENGTHS, dtype=dtype)
    on_device = [t.cuda() for t in (case.q, case.k, case.v, case.k_pages, case.v_pages)]
    result = paged_attention(*on_device, case.batch, window=window)
    assert_close(result.cpu(), case.wide().run("reference", window=window))


def test_the_definition_is_attention_to_the_tokens_so_far():
    case = Case.of([(0, 40)], heads=(4, 2)).wide()
    scale = 0.3
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(0, 1)[None] for t in (case.q, case.k, case.v)), is_causal=True, scale=scale, enable_gqa=True
    )
    assert_close(case.run("reference", scale=scale), expected[0].transpose(0, 1))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=8),
    group=st.integers(1, 8),
    size=st.integers(1, 40),
    window=st.none() | st.integers(1, 60),
)
def test_forms_agree_on_any_batch(lengths, group, size, window):
    case = Case.of(lengths, heads=(group, 1), size=size)
    expected = case.wide().run("reference", window=window)
    for form in FORMS if native.load() else FORMS[:2]:
        assert_close(case.run(form, window=window), expected, form)


def test_tensors_may_lie_anyhow(form):
    case = Case.of([(20, 1), (3, 9)], heads=(6, 2))
    expected, wide = case.run(form), case.wide().run("reference")
    together = torch.cat([case.q, case.k, case.v], dim=1).split([6, 2, 2], dim=1)
    heads_first = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (case.q, case.k, case.v)]
    features_apart = [t.mT.contiguous().mT for t in (case.q, case.k, case.v)]
    for case.q, case.k, case.v in (together, heads_first, features_apart):
        if form == "native":
            assert torch.equal(case.run(form), expected)
        assert_close(case.run(form), wide)


def test_new_tokens_are_written_to_their_pages_and_nothing_else_is(form):
    case = Case.of(ODD_LENGTHS)
    expected = case.k_pages.clone(), case.v_pages.clone()
    paged.write(case.k, case.v, *expected, case.batch)
    got = case.k_pages.clone(), case.v_pages.clone()
    paged_attention(case.q, case.k, case.v, *got, case.batch, implementation=form)
    for pages, wanted in zip(got, expected, strict=True):
        assert torch.equal(pages.view(torch.int32), wanted.view(torch.int32))


class TestCompany:
    def test_a_row_has_the_same_bits_in_any_company_order_chunk_and_number_of_threads(self, variant, monkeypatch):
        # However small the work is.
        monkeypatch.setattr(paged, "_THREADS_PAY", 0)
        case = Case.of(ODD_LENGTHS, heads=(6, 2), size=48)
        threads = torch.get_num_threads()
        for window in (None, 20):
            whole = case.run("native", window=window)
            for sequence in range(case.num_sequences):
                alone = case.only([sequence]).run("native", window=window)
                assert torch.equal(alone, whole[case.rows(sequence)])
            order = torch.randperm(case.num_sequences, generator=torch.Generator().manual_seed(1)).tolist()
            mixed = case.only(order).run("native", window=window)
            assert torch.equal(mixed, torch.cat([whole[case.rows(s)] for s in order]))
            try:
                torch.set_num_threads(1 if threads > 1 else 2)
                assert torch.equal(case.run("native", window=window), whole)
            finally:
                torch.set_num_threads(threads)

    @pytest.mark.parametrize("cuts", [(1,) * 40, (1, 39), (17, 23), (16, 16, 8)])
    def test_a_row_has_the_same_bits_in_any_chunk(self, cuts, variant):
        case = Case.of([(9, 40)], heads=(6, 2))
        for window in (None, 20):
            whole, pages = case.run("native", window=window), (case.k_pages.clone(), case.v_pages.clone())
            at = 0
            for count in cuts:
                batch = PagedBatch.of([9 + at], [count], case.pages)
                q, k, v = (t[at : at + count] for t in (case.q, case.k, case.v))
                part = paged_attention(q, k, v, *pages, batch, window=window, implementation="native")
                assert torch.equal(part, whole[at : at + count])
                at += count

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    def test_values_that_are_not_finite_stay_with_their_sequence(self, value, form):
        case = Case.of([(20, 1), (20, 1), (3, 9), (30, 5)])
        expected = case.run(form)
        for sequence in (1, 3):
            for tensor in (case.q, case.k, case.v):
                tensor[case.rows(sequence)] = value
        got = case.run(form)
        for sequence in (0, 2):
            assert torch.equal(got[case.rows(sequence)], expected[case.rows(sequence)])
        for sequence in (1, 3):
            assert not torch.isfinite(got[case.rows(sequence)]).any()

    def test_rows_that_fill_up_a_batch_may_share_the_scratch_page(self, form):
        case = Case.of([(20, 1), (3, 9)])
        expected = case.run(form)
        filled = Case(
            *(torch.cat([t, torch.full_like(t[:6], torch.nan)]) for t in (case.q, case.k, case.v)),
            case.k_pages,
            case.v_pages,
            [*case.starts, 0, 0],
            [*case.lengths, 1, 5],
            [*case.pages, [0], [0]],
        )
        got = filled.run(form)[: len(expected)]
        if form == "torch":
            assert_close(got, expected.double())
        else:
            assert torch.equal(got, expected)

    def test_two_sequences_may_read_the_same_pages(self, form):
        case = Case.of([(32, 1), (32, 1)])
        case.pages[1][:2] = case.pages[0][:2]
        assert_close(case.run(form), case.wide().run("reference"))


def test_pages_before_the_window_may_be_anything(form):
    case = Case.of([(100, 1), (90, 20)])
    expected = case.run(form, window=30)
    for pages, first in zip(case.pages, (71, 61), strict=True):
        count = first // PAGE_TOKENS
        pages[:count] = [0] * count
    assert torch.equal(case.run(form, window=30), expected)


def test_nothing_is_kept_of_a_step(form):
    case = Case.of([(20, 1), (3, 9)])
    batch = case.batch
    paged_attention(case.q, case.k, case.v, case.k_pages, case.v_pages, batch, implementation=form)
    gone = weakref.ref(batch)
    del batch
    gc.collect()
    assert gone() is None


def test_without_a_wish_the_native_form_computes_what_it_can(library, monkeypatch):
    case = Case.of(ODD_LENGTHS)
    assert torch.equal(case.run(None), case.run("native"))
    wide = case.wide()
    assert torch.equal(wide.run(None), wide.run("torch"))
    monkeypatch.setattr(native, "load", lambda: None)
    assert torch.equal(case.run(None), case.run("torch"))
    with pytest.raises(ValueError, match="was not built, or is turned off"):
        case.run("native")


def test_the_native_form_refuses_other_dtypes(library):
    with pytest.raises(ValueError, match=r"takes fp32, not torch\.float64"):
        Case.of([(0, 1)]).wide().run("native")


@pytest.mark.parametrize(
    ("starts", "lengths", "pages", "message"),
    [
        ([0], [1, 2], [[1]], "1 starts, 2 lengths and pages of 1"),
        ([0], [1], [], "pages of 0 sequences"),
        ([-1], [1], [[1]], "must not be negative"),
        ([1], [-1], [[1]], "must not be negative"),
        ([2**31 - 20], [10], [[1]], "nor together more than"),
        ([15], [2], [[1]], "has 1 pages and needs 2"),
        ([0], [1], [[-1]], "pages must be in 0"),
        ([0], [1], [[2**32 + 1]], "pages must be in 0"),
    ],
)
def test_a_batch_that_cannot_be_is_refused(starts, lengths, pages, message):
    with pytest.raises(ValueError, match=message):
        PagedBatch.of(starts, lengths, pages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": (2, 6, 32)}, "do not fit together"),
        ({"q": (1, 6, 32), "k": (1, 2, 32), "v": (1, 2, 32)}, "q has 1 rows, the batch 10"),
        ({"q": (10, 5, 32)}, "cannot share 2 heads"),
        ({"k_pages": (4, 2, 16, 32)}, "pages of shapes"),
        ({"k_pages": (2, 2, 32, 16), "v_pages": (2, 2, 16, 32)}, "uses page 3 and there are 2"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message, form):
    case = Case.of([(20, 1), (3, 9)])
    for name, shape in change.items():
        setattr(case, name, torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        case.run(form)


def test_other_wishes_that_cannot_be_met_are_refused(form):
    case = Case.of([(0, 1)])
    with pytest.raises(ValueError, match="a window of 0 tokens"):
        case.run(form, window=0)
    with pytest.raises(ValueError, match="no implementation 'triton'; it has: reference, torch, native"):
        case.run("triton")
    case.k = case.k.double()
    with pytest.raises(ValueError, match="one dtype"):
        case.run(form)
    case.k = case.k.float()
    case.k_pages = case.k_pages.mT.contiguous().mT
    with pytest.raises(ValueError, match="contiguous"):
        paged_attention(case.q, case.k, case.v, case.k_pages, case.v_pages, case.batch, implementation=form)
