"""Adapters on rows in C: what the definition gives, to the bit the same in whatever company."""

from dataclasses import replace

import pytest
import torch

from adamix_kernels import cpu, dispatch, native, reference, rows
from adamix_kernels.gpu.records import FIELDS, SlotTable
from adamix_kernels.native.library import VARIANTS
from adamix_kernels.segments import Segments
from adamix_kernels.testing import BatchShape, WeightMaker, assert_close, cast, error_ratio, on_a_copy, tolerance
from adamix_kernels.weights import ACTIVATIONS, LoraWeights

SHORT = BatchShape((1, 2, 0, 3, 1, 4, 5), (1, 2, 3, 7, 1, 4, 1), (0, 8, 3, 16, 0, 9))
MIXED = BatchShape((1, 2, 3, 1), (1, 40, 7, 9), (0, 8, 16, 3))


@pytest.fixture(autouse=True)
def _no_grad(library):
    with torch.no_grad():
        yield


@pytest.fixture(params=VARIANTS)
def variant(request, library):
    before = library.variant
    if not library.use_kernels(request.param):
        pytest.skip("this processor cannot run them")
    yield request.param
    library.use_kernels(before)


def table_of(weights):
    """The weights in a table whose records say where in host memory they lie."""
    table = SlotTable(torch.zeros(len(weights), FIELDS, dtype=torch.int64), rows.host_base(torch.float32))
    for slot, each in enumerate(weights):
        table[slot] = each
        table.records.table[slot] = torch.tensor(table.record(slot))
    return table


def test_the_base_of_host_memory_is_its_beginning():
    assert rows.host_base(torch.float32).data_ptr() == 0


class TestEqualToTheDefinition:
    def test_bottleneck(self, shape, variant, make_batch):
        batch = make_batch(shape, torch.float32)
        expected = on_a_copy(
            reference.bottleneck_, batch.x.double(), batch.segments, cast(batch.bottlenecks, torch.float64)
        )
        for weights in (batch.bottlenecks, table_of(batch.bottlenecks)):
            x = batch.x.clone()
            assert dispatch.bottleneck_(x, batch.segments, weights, implementation="rows") is x
            assert_close(x, expected)
            assert torch.equal(x[batch.identity_rows], batch.x[batch.identity_rows])

    def test_bottleneck_norm(self, shape, make_batch):
        batch, maker = make_batch(shape, torch.float32), WeightMaker(seed=9)
        gain, shift = maker.rows(batch.x.shape[1]), maker.rows(batch.x.shape[1])
        wide = cast(batch.bottlenecks, torch.float64)
        arguments = gain.double(), shift.double(), 1e-5
        expected = reference.bottleneck_norm(batch.x.double(), batch.segments, wide, *arguments)
        plain = torch.nn.functional.layer_norm(batch.x, gain.shape, gain, shift, 1e-5)
        for weights in (batch.bottlenecks, table_of(batch.bottlenecks)):
            y = dispatch.bottleneck_norm(batch.x, batch.segments, weights, gain, shift, 1e-5, implementation="rows")
            assert_close(y, expected)
            assert torch.equal(y[batch.identity_rows], plain[batch.identity_rows])

    @pytest.mark.parametrize("window", [None, (16, 96), (5, 85)])
    def test_lora(self, shape, window, variant, make_batch):
        batch = make_batch(shape, torch.float32)
        y = batch.y if window is None else WeightMaker(seed=5).rows(len(batch.y), 112)
        wide = cast(batch.loras, torch.float64)
        expected = on_a_copy(reference.lora_, y.double(), batch.x.double(), batch.segments, wide, window)
        for weights in (batch.loras, table_of(batch.loras)):
            got = on_a_copy(dispatch.lora_, y, batch.x, batch.segments, weights, window, implementation="rows")
            assert_close(got, expected)
            assert torch.equal(got[batch.identity_rows], y[batch.identity_rows])
            if window is not None:
                assert torch.equal(got[:, : window[0]], y[:, : window[0]])
                assert torch.equal(got[:, window[1] :], y[:, window[1] :])

    def test_slices_of_a_fused_projection(self, variant):
        maker, segments = WeightMaker(), SHORT.segments
        windows = [(0, 32), (32, 48), (48, 61)]
        weights = [
            [maker.lora(rank, 24, end - start) if rank else None for rank in SHORT.ranks] for start, end in windows
        ]
        x, y = maker.rows(segments.num_rows, 24), maker.rows(segments.num_rows, 64)
        wide = [cast(each, torch.float64) for each in weights]
        expected = on_a_copy(reference.lora_slices_, y.double(), x.double(), segments, wide, windows)
        got = on_a_copy(dispatch.lora_slices_, y, x, segments, weights, windows, implementation="rows")
        assert_close(got, expected)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("biases", [True, False])
    def test_every_activation(self, activation, biases):
        maker, segments = WeightMaker(), SHORT.segments
        weights = [
            maker.bottleneck(rank, 40, scale=0.7, activation=activation, biases=biases) if rank else None
            for rank in SHORT.ranks
        ]
        x = maker.rows(segments.num_rows, 40) * 3
        wide = cast(weights, torch.float64)
        expected = on_a_copy(reference.bottleneck_, x.double(), segments, wide)
        assert_close(on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="rows"), expected)

    @pytest.mark.parametrize("features", [(1, 1), (3, 200), (16, 17), (576, 192), (130, 64)])
    def test_any_features(self, features, variant):
        maker, segments = WeightMaker(), SHORT.segments
        weights = [maker.lora(rank, *features) if rank else None for rank in SHORT.ranks]
        x, y = maker.rows(segments.num_rows, features[0]), maker.rows(segments.num_rows, features[1])
        expected = on_a_copy(reference.lora_, y.double(), x.double(), segments, cast(weights, torch.float64))
        assert_close(on_a_copy(dispatch.lora_, y, x, segments, weights, implementation="rows"), expected)

    def test_heads(self):
        maker = WeightMaker()
        weights = [None, maker.head(32, 2), maker.head(32, 7, dense=False), maker.head(32, 1)]
        features, segments = maker.rows(9, 32), Segments.from_lengths([3, 1, 2, 0, 1], [1, 4, 2, 1, 1])
        outputs = dispatch.head(features, segments, weights, implementation="rows")
        expected = reference.head(features.double(), segments, cast(weights, torch.float64))
        assert [tuple(o.shape) for o in outputs] == [tuple(e.shape) for e in expected]
        for got, wanted in zip(outputs, expected, strict=True):
            assert_close(got, wanted)

    def test_the_largest_rank(self):
        maker, segments = WeightMaker(), Segments.from_lengths([1], [3])
        weights = [None, maker.bottleneck(native.LARGEST_RANK, 20)]
        x = maker.rows(3, 20)
        expected = on_a_copy(reference.bottleneck_, x.double(), segments, cast(weights, torch.float64))
        got = on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="rows")
        # A thousand terms are summed one after another.
        assert error_ratio(got, expected) < 2 * tolerance(torch.float32)


class TestCompany:
    # Enough products for two threads.
    WIDTH, ROWS = 256, 80

    def batch(self):
        maker = WeightMaker()
        ranks = (0, 16, 3, 24)
        weights = table_of([maker.bottleneck(rank, self.WIDTH) if rank else None for rank in ranks])
        slots = torch.randint(0, len(ranks), (self.ROWS,), generator=torch.Generator().manual_seed(0)).sort().values
        return maker.rows(self.ROWS, self.WIDTH), slots, weights

    def run(self, x, slots, weights):
        segments = Segments.from_lengths(slots.tolist(), [1] * len(slots))
        return on_a_copy(dispatch.bottleneck_, x, segments, weights, implementation="rows")

    def test_a_row_has_the_same_bits_alone_reordered_and_on_one_thread(self, variant):
        x, slots, weights = self.batch()
        whole, threads = self.run(x, slots, weights), torch.get_num_threads()
        for row in range(0, self.ROWS, 7):
            assert torch.equal(self.run(x[row : row + 1], slots[row : row + 1], weights), whole[row : row + 1])
        order = torch.randperm(self.ROWS, generator=torch.Generator().manual_seed(1))
        assert torch.equal(self.run(x[order], slots[order], weights), whole[order])
        try:
            torch.set_num_threads(1 if threads > 1 else 2)
            assert torch.equal(self.run(x, slots, weights), whole)
        finally:
            torch.set_num_threads(threads)

    def test_a_row_that_is_not_finite_stays_alone(self, variant):
        x, slots, weights = self.batch()
        whole = self.run(x, slots, weights)
        spoilt, row = x.clone(), int((slots == 1).nonzero()[1])
        spoilt[row, 5] = torch.nan
        got = self.run(spoilt, slots, weights)
        assert torch.isnan(got[row]).all()
        others = torch.arange(self.ROWS) != row
        assert torch.equal(got[others], whole[others])

    def test_heads_too(self):
        maker = WeightMaker()
        weights, features = [None, maker.head(32, 5)], maker.rows(9, 32)
        (whole,) = dispatch.head(features, Segments.from_lengths([1], [9]), weights, implementation="rows")
        (alone,) = dispatch.head(features[4:5], Segments.from_lengths([1], [1]), weights, implementation="rows")
        assert torch.equal(alone, whole[4:5])


class TestChoice:
    """Without a wish, short segments take this form where their records are at hand."""

    @pytest.fixture
    def long_forms(self, monkeypatch):
        """How many rows were computed in the forms for long segments."""
        seen = []
        pick = cpu.pick_form
        monkeypatch.setattr(cpu, "pick_form", lambda **facts: seen.append(facts["num_rows"]) or pick(**facts))
        return seen

    @pytest.mark.parametrize("op", ["bottleneck_", "bottleneck_norm", "lora_"])
    @pytest.mark.parametrize("shape", [SHORT, MIXED], ids=["short", "mixed"])
    def test_of_a_table_short_segments_do(self, op, shape, long_forms, make_batch):
        batch = make_batch(shape, torch.float32)
        weights = batch.loras if op == "lora_" else batch.bottlenecks
        gain = torch.ones(batch.x.shape[1])

        def run(x, y, of, implementation):
            if op == "lora_":
                return dispatch.lora_(y.clone(), x, batch.segments, of, implementation=implementation)
            if op == "bottleneck_":
                return dispatch.bottleneck_(x.clone(), batch.segments, of, implementation=implementation)
            return dispatch.bottleneck_norm(
                x, batch.segments, of, gain.to(x.dtype), None, 1e-5, implementation=implementation
            )

        got = run(batch.x, batch.y, table_of(weights), None)
        long = [length for slot, length in zip(shape.slots, shape.lengths, strict=True) if slot and length >= 8]
        assert sorted(long_forms) == sorted(long)
        assert_close(got, run(batch.x.double(), batch.y.double(), cast(weights, torch.float64), "reference"))

    def test_other_sequences_keep_their_forms_to_the_bit(self, long_forms, make_batch, monkeypatch):
        batch = make_batch(SHORT, torch.float32)
        got = on_a_copy(dispatch.bottleneck_, batch.x, batch.segments, batch.bottlenecks)
        assert sum(long_forms) == int((~batch.identity_rows).sum())
        monkeypatch.setattr(native, "load", lambda: None)
        assert torch.equal(got, on_a_copy(dispatch.bottleneck_, batch.x, batch.segments, batch.bottlenecks))
        # Without the native kernels a table is a sequence like any other.
        assert torch.equal(got, on_a_copy(dispatch.bottleneck_, batch.x, batch.segments, table_of(batch.bottlenecks)))

    def test_a_table_that_this_form_cannot_compute_takes_another(self, long_forms, make_batch):
        batch = make_batch(SHORT, torch.float32)
        columns = torch.empty(batch.x.shape[::-1]).T.copy_(batch.x)
        dispatch.bottleneck_(columns, batch.segments, table_of(batch.bottlenecks))
        assert long_forms
        assert_close(columns, on_a_copy(dispatch.bottleneck_, batch.x, batch.segments, batch.bottlenecks).double())


class TestRefused:
    def test_by_name_whatever_it_cannot_compute(self, make_batch, monkeypatch):
        batch = make_batch(SHORT, torch.float32)
        table = table_of(batch.bottlenecks)

        def run(x=batch.x, segments=batch.segments, weights=table):
            dispatch.bottleneck_(x.clone(memory_format=torch.preserve_format), segments, weights, implementation="rows")

        own = Segments.from_lengths([1, 2], [1, 1], [2, 1])
        with pytest.raises(ValueError, match="up projection of another slot"):
            run(batch.x[:2], own)
        with pytest.raises(ValueError, match="fp32 on a CPU"):
            run(batch.x.double(), weights=cast(batch.bottlenecks, torch.float64))
        with pytest.raises(ValueError, match=r"features \(in, out\) are \(48, 48\), not \(47, 47\)"):
            run(batch.x[:, :47].contiguous())
        with pytest.raises(ValueError, match="do not lie together"):
            run(torch.empty(batch.x.shape[::-1]).T.copy_(batch.x))
        wide = WeightMaker().bottleneck(native.LARGEST_RANK + 1, 48)
        with pytest.raises(ValueError, match="a rank is larger than 1024"):
            run(batch.x[:1], Segments.from_lengths([1], [1]), [None, wide])
        monkeypatch.setattr(native, "load", lambda: None)
        assert not rows.is_available(torch.float32)
        with pytest.raises(ValueError, match="were not built, or are turned off"):
            run()

    def test_it_is_offered_in_fp32(self):
        assert rows.is_available(torch.float32)
        assert not rows.is_available(torch.bfloat16)

    def test_a_record_changes_when_its_slot_does(self, make_batch):
        maker, segments = WeightMaker(), Segments.from_lengths([1], [2])
        table, x = table_of([None, maker.lora(4, 8, 8)]), maker.rows(2, 8)
        other = maker.lora(2, 8, 8)
        table[1] = replace(other, scale=3.0)
        table.records.table[1] = torch.tensor(table.record(1))
        got = on_a_copy(dispatch.lora_, x, x, segments, table, implementation="rows")
        wide = LoraWeights(other.a.double(), other.b.double(), 3.0)
        assert_close(got, on_a_copy(reference.lora_, x.double(), x.double(), segments, [None, wide]))
        table[1] = None
        table.records.table[1] = torch.tensor(table.record(1))
        assert torch.equal(on_a_copy(dispatch.lora_, x, x, segments, table, implementation="rows"), x)
