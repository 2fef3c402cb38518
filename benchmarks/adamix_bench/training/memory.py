"""What training keeps in memory: counted tensor by tensor, and the peak that the system or the device saw.

Knows torch and the operating system; neither adapters nor clocks.
"""

import ctypes
import gc
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

_PEAK, _NOW = "VmHWM", "VmRSS"


@dataclass
class Memory:
    """Bytes of a training run.

    Attributes:
        weights: that are trained.
        gradients: of one step; experts that were not drawn have none. The most of any step.
        optimiser: the optimiser's state, once every trained weight has some.
        activations: what the forward pass keeps for the backward pass, each storage once, weights not counted. The most
            of any step.
        peak: by how much the process (or, on CUDA, the device's allocator) grew at most; None where the system cannot
            say. A process has freed memory of before at hand, and it is coarse.
    """

    weights: int = 0
    gradients: int = 0
    optimiser: int = 0
    activations: int = 0
    peak: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {f"{name}_bytes": value for name, value in asdict(self).items()}


@contextmanager
def watched(frozen: Iterable[Tensor], device: torch.device) -> Iterator[Memory]:
    """Fill in the value while a model trains inside of the block; all of it is known when the block is left.

    Args:
        frozen: the weights that are not trained.
    """
    found = Memory()
    frozen_storages = {_address(tensor) for tensor in frozen}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    def after_step(optimiser: Optimizer, *_: object) -> None:
        trained = [weight for group in optimiser.param_groups for weight in group["params"]]
        weights = frozen_storages | {_address(weight) for weight in trained}
        found.weights = _bytes(trained)
        found.gradients = max(found.gradients, _bytes(weight.grad for weight in trained if weight.grad is not None))
        found.optimiser = _state_bytes(optimiser, found.weights)
        activations = sum(size for address, size in kept.items() if address not in weights)
        found.activations = max(found.activations, activations)
        kept.clear()

    gc.collect()
    before = _start_of_peak(device)
    hook = register_optimizer_step_post_hook(after_step)
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield found
    finally:
        hook.remove()
    found.peak = _growth(device, before)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _state_bytes(optimiser: Optimizer, weights_bytes: int) -> int:
    """The state there will be: that of the weights which have some, in proportion."""
    with_state = [weight for weight, state in optimiser.state.items() if state]
    tensors = (value for state in optimiser.state.values() for value in state.values() if isinstance(value, Tensor))
    state = _bytes(tensor for tensor in tensors if tensor.dim() > 0)
    return round(state * weights_bytes / _bytes(with_state)) if with_state else 0


def _start_of_peak(device: torch.device) -> int | None:
    """Bytes in use now, from which a peak is counted; None where it cannot be known."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if not sys.platform.startswith("linux"):
        return None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak of before
    except OSError:
        return None
    return _status(_NOW)


def _growth(device: torch.device, before: int | None) -> int | None:
    if before is None:
        return None
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status(_PEAK)
    return max(0, peak - before)


def _status(name: str) -> int:
    """A line of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
