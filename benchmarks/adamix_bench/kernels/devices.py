"""What the benchmark needs of a device: its name, what it copies in a second, and the time of a cell's forms.

Both kinds have the same attributes: `type`, torch's name of the kind; `default_dtype`; `passes`, the forms that are
measured together, in order of importance; `name`, for people and for the key of what was measured.
"""

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from adamix_bench import machine
from adamix_bench.kernels import clocks, forms
from adamix_bench.kernels.batches import DTYPES, Batch
from adamix_bench.kernels.cells import Cell
from adamix_bench.kernels.clocks import Timing
from adamix_kernels.cpu import pick_form
from adamix_kernels.plans import Facts, Plan, pick, rank_class

# Compiling takes long: a few cells, after everything else.
COMPILED_ONLY = ("compiled",)


@dataclass(frozen=True)
class Cuda:
    """The current CUDA device. `facts` are what numbers are compared with."""

    type = "cuda"
    default_dtype = "bf16"
    passes = (("fused",), ("unfused", "bmm", "grouped_mm"), COMPILED_ONLY)

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name()

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device())

    def facts(self) -> dict[str, Any]:
        return {
            "copy_gb_per_s": clocks.copy_gb_per_s(self._device),
            "empty_kernel_us": clocks.empty_kernel_us(self._device),
        }

    def chosen(self, cell: Cell, dtype: str) -> dict[str, Any]:
        """What the rules choose for a cell: the `form` and the `plan` of its kernel."""
        from adamix_kernels.gpu.ops import architecture

        facts = Facts(dtype, rank_class(cell.rank), cell.features, cell.rows, cell.adapters)
        return {"form": "fused", "plan": label(pick("low_rank", architecture(self._device), facts))}

    def times(self, cell: Cell, dtype: str, wanted: Sequence[str]) -> dict[str, Timing]:
        """The time of each form."""
        batches = Batch.several(cell, DTYPES[dtype], self._device)
        result = {form: self._time(form, batches) for form in wanted}
        del batches
        torch.cuda.empty_cache()
        return result

    def _time(self, form: str, batches: Sequence[Batch]) -> Timing:
        if reason := forms.why_not(form, batches[0].x.dtype):
            return Timing(None, error=reason)
        try:
            with torch.inference_mode():
                return Timing(clocks.replayed_us(forms.calls(form, batches)))
        except (RuntimeError, NotImplementedError) as error:
            # What cannot be computed or captured here is a finding about that form, not the end of the run.
            gc.collect()
            return Timing(None, error=f"{type(error).__name__}: {str(error).splitlines()[0]}")


@dataclass(frozen=True)
class Cpu:
    """The processor, with as many threads as torch has."""

    type = "cpu"
    default_dtype = "fp32"
    passes = (forms.ON_CPU,)

    @property
    def name(self) -> str:
        threads = torch.get_num_threads()
        return f"{machine.describe(threads)['cpu']}, {threads} threads, {os.environ.get('OMP_WAIT_POLICY')}"

    def facts(self) -> dict[str, Any]:
        return {"copy_gb_per_s": clocks.copy_gb_per_s(torch.device("cpu"))}

    def chosen(self, cell: Cell, dtype: str) -> dict[str, Any]:
        form = pick_form(
            num_rows=cell.rows,
            num_segments=cell.adapters,
            rank=cell.rank,
            features=cell.features,
            dtype=DTYPES[dtype],
            device_type="cpu",
            threads=torch.get_num_threads(),
        )
        return {"form": form}

    def times(self, cell: Cell, dtype: str, wanted: Sequence[str]) -> dict[str, Timing]:
        batch = Batch.random(cell, DTYPES[dtype], torch.device("cpu"))
        with torch.inference_mode():
            calls = {form: forms.calls(form, [batch])[0] for form in wanted}
            return clocks.in_turns_on_cpu(calls, batch.x)


Device = Cuda | Cpu


def found() -> Device:
    """The CUDA device, or this CPU."""
    return Cuda() if torch.cuda.is_available() else Cpu()


def label(plan: Plan) -> str:
    """A plan in a few characters."""
    text = f"{plan.kernel} {plan.block_m}x{plan.block_h}"
    if plan.kernel == "split":
        text += f" n{plan.block_n} s{plan.splits}"
    return f"{text}, {plan.num_warps} warps, {plan.num_stages} stages" + (", pdl" if plan.pdl else "")
