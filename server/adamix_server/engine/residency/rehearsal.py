"""Has kernels compiled before anybody waits for them: when the first adapter of its kind is read.

For each shape of site that the adapter has weights at, its op is launched once with each plan that a batch can come to,
over rows of zeros that belong to no adapter. Knows the bank's sites and which of their ops a kind of adapter takes;
knows neither slots nor who wants the adapter.
"""

import threading
from collections.abc import Iterator

import torch

from adamix_kernels import dispatch
from adamix_kernels.dispatch import BottleneckWeights, HeadWeights, LoraWeights
from adamix_kernels.plans import RANK_CLASSES, rank_class
from adamix_kernels.segments import Segments
from adamix_server.engine.residency.packing import AdapterWeights, PackedAdapter
from adamix_server.engine.residency.slot_bank import LinearSite, NormSite, SlotBank


class Rehearsal:
    """What has been compiled for the sites of one bank.

    Args:
        max_rows: how many rows the largest batch has.
    """

    def __init__(self, bank: SlotBank, max_rows: int) -> None:
        self._bank = bank
        self._max_rows = max_rows
        self._rehearsed: set[tuple[object, ...]] = set()
        # One adapter's kernels after another's, whichever thread reads it.
        self._one_at_a_time = threading.Lock()

    @torch.inference_mode()
    def rehearse(self, packed: PackedAdapter) -> None:
        """Have the kernels compiled that batches with this adapter will need.

        Takes seconds for the first adapter of its kind and rank, and nothing for the next. Touches no slot, so it may
        run in another thread than the forward passes, which it would otherwise hold up.
        """
        if "triton" not in dispatch.implementations(self._bank.device.type):
            return
        with self._one_at_a_time:
            self._rehearse_sites(packed.weights)
            self._rehearse_head(packed.weights.head)

    def _rehearse_sites(self, weights: AdapterWeights) -> None:
        for at, of_site in weights.sites.items():
            site, low_rank = self._bank.sites[at], of_site.low_rank
            if len(low_rank.down) > RANK_CLASSES[-1]:
                continue  # computed without kernels
            rank, features = rank_class(len(low_rank.down)), (low_rank.down.shape[1], low_rank.up.shape[1])
            what = (type(site), type(of_site), rank, features, site.num_columns)
            if what not in self._rehearsed:
                self._launch(site, type(of_site), rank, features)
                self._rehearsed.add(what)

    def _launch(
        self,
        site: LinearSite | NormSite,
        kind: type[BottleneckWeights | LoraWeights],
        rank: int,
        features: tuple[int, int],
    ) -> None:
        """Launch what adapters of this kind and rank class need at a site. `features`: of its weights, in and out."""
        for segments in self._plans(rank, max(features), is_norm=isinstance(site, NormSite)):
            num_rows = segments.num_rows
            if isinstance(site, NormSite):
                site.adapt(self._zeros(num_rows, features[0]), segments)
            elif kind is LoraWeights:
                site.add_loras(self._zeros(num_rows, site.num_columns), self._zeros(num_rows, features[0]), segments)
            else:
                site.add_bottlenecks(self._zeros(num_rows, site.num_columns), segments)

    def _plans(self, rank: int, features: int, *, is_norm: bool) -> Iterator[Segments]:
        # Imports Triton, which a CPU does without.
        from adamix_kernels.gpu import ops

        bank = self._bank
        return ops.rehearsals(rank, features, bank.dtype, bank.device, self._max_rows, is_norm=is_norm)

    def _rehearse_head(self, head: HeadWeights) -> None:
        """Heads of few and of many outputs, on few rows and on many: those are the plans there are."""
        layer = head.out if head.dense is None else head.dense
        if layer is None or ("heads", layer.shape[1]) in self._rehearsed:
            return
        for num_rows, num_outputs in ((1, 1), (1, 65), (65, 1)):
            weights = HeadWeights(None, None, None, self._zeros(num_outputs, layer.shape[1]), None)
            features = self._zeros(num_rows, layer.shape[1])
            dispatch.head(features, Segments.from_lengths([1], [num_rows]), [None, weights])
        self._rehearsed.add(("heads", layer.shape[1]))

    def _zeros(self, num_rows: int, num_features: int) -> torch.Tensor:
        return torch.zeros(num_rows, num_features, dtype=self._bank.dtype, device=self._bank.device)
