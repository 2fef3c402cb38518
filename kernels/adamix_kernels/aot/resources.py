"""What a compiled kernel takes on a device, read from its binary, and what of that is a fault.

The numbers that Triton reports itself appear only once a driver has loaded the binary; what is said here needs none.
NVIDIA binaries are taken apart by the disassembler that comes with Triton; for AMD the assembly text is kept.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adamix_kernels.aot.loads import Load, block_loads
from adamix_kernels.gpu.specimen import TARGETS, Specimen

# The instructions that multiply matrices; those after the first exist for tiles of 64 rows and more.
_MATRIX_INSTRUCTIONS = {
    "sm80": ("HMMA",),
    "sm90": ("HMMA", "HGMMA"),
    "sm100": ("HMMA", "UTCHMMA"),
    "gfx942": ("v_mfma",),
}
# Columns that sm100 has of it.
_TENSOR_MEMORY = 512
# All of it, but for what the compiler moved to another line. Where it loses sight of the alignment of one operand, the
# share is below 0.8.
_WIDE_SHARE = 0.9


@dataclass(frozen=True)
class Resources:
    """What one program takes.

    Attributes:
        registers: of a thread.
        spill_bytes: of memory per thread, for what does not fit into registers.
        shared_bytes: of shared memory.
        tensor_memory: columns of tensor memory (sm100).
        mma: the instructions that multiply, without their shapes: "HGMMA", "HMMA tf32", "FFMA"; joined by "+".
        wide_loads: share of the bytes of rows and weights that are fetched in wide pieces (`loads.py`); None if no such
            load was found.
        copies_ahead: blocks go to shared memory while earlier ones are multiplied.
        multiplies_in_loop: a matrix instruction lies in a loop.
        grid_dependencies: instructions that wait for the kernel ahead, or let the next one start.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_memory: int
    mma: str
    wide_loads: float | None
    copies_ahead: bool
    multiplies_in_loop: bool
    grid_dependencies: int


def resources(compiled: Any, target: str) -> Resources:
    """Of what `compile_specimen` returned for `target`."""
    if TARGETS[target].backend == "hip":
        return _of_amd(compiled)
    with tempfile.TemporaryDirectory() as directory:
        binary = Path(directory) / "kernel.cubin"
        binary.write_bytes(compiled.asm["cubin"])
        usage, listing = _cuobjdump("--dump-resource-usage", binary), _cuobjdump("--dump-sass", binary)
    used = dict(re.findall(r"\b(REG|STACK):(\d+)", usage))
    loads = block_loads(compiled.asm["ttgir"], compiled.asm["ptx"])
    instructions = [
        (int(address, 16), re.sub(r"^@!?U?P\w+\s+", "", text))
        for address, text in re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", listing, re.MULTILINE)
    ]
    return Resources(
        registers=int(used["REG"]),
        # There are no arrays in a kernel: what lies on the stack was spilled.
        spill_bytes=int(used["STACK"]),
        shared_bytes=compiled.metadata.shared,
        tensor_memory=getattr(compiled.metadata, "tmem_size", None) or 0,
        mma=_mma(text for _, text in instructions) or _plain_products(listing),
        wide_loads=_wide_share(loads),
        copies_ahead=any(load.is_copy for load in loads),
        multiplies_in_loop=bool(_mma(_in_loops(instructions))),
        grid_dependencies=len(re.findall(r"\bgriddepcontrol\.", compiled.asm["ptx"])),
    )


def problems(specimen: Specimen, found: Resources, target: str) -> list[str]:
    """What must not be in a kernel that ships; empty for a good one."""
    device, faults = TARGETS[target], []
    if found.spill_bytes:
        faults.append(f"{found.spill_bytes} bytes of registers are spilled")
    if found.shared_bytes > device.shared_bytes:
        faults.append(f"{found.shared_bytes} bytes of shared memory, and the device has {device.shared_bytes}")
    if found.tensor_memory > _TENSOR_MEMORY:
        faults.append(f"{found.tensor_memory} columns of tensor memory, and the device has {_TENSOR_MEMORY}")
    wanted = wanted_instructions(specimen, target)
    if not found.mma or not set(found.mma.split("+")) <= set(wanted):
        faults.append(f"multiplies by {found.mma or 'nothing'} instead of {' or '.join(wanted)}")
    if found.wide_loads is None:
        faults.append("no load of rows or weights is to be seen")
    elif found.wide_loads < _WIDE_SHARE:
        faults.append(f"only {found.wide_loads:.0%} of the bytes of rows and weights are fetched in wide pieces")
    stages = specimen.options.get("num_stages", 1)
    if device.backend == "cuda" and stages > 1 and found.multiplies_in_loop and not found.copies_ahead:
        faults.append(f"has {stages} stages, but nothing is copied ahead")
    if specimen.overlaps_neighbour and not (device.overlaps_kernels and found.grid_dependencies):
        faults.append("does not overlap the kernel beside it")
    return faults


def wanted_instructions(specimen: Specimen, target: str) -> tuple[str, ...]:
    """Those that may multiply in a specimen: matrix instructions, and none that rounds fp32 numbers unless asked to."""
    matrix = _MATRIX_INSTRUCTIONS[target]
    if specimen.has_half_operands:
        return matrix
    if specimen.precision == "tf32":
        return tuple(f"{name} tf32" for name in matrix)
    # On NVIDIA only plain multiplications are exact; AMD multiplies matrices of fp32 numbers as they are.
    return matrix if TARGETS[target].backend == "hip" else ("FFMA",)


def _of_amd(compiled: Any) -> Resources:
    text = compiled.asm["amdgcn"]
    notes = {name: int(value) for name, value in re.findall(r"^\s*\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    products = {"v_mfma tf32" if "xf32" in name else "v_mfma" for name in re.findall(r"\bv_mfma\w+", text)}
    return Resources(
        registers=notes["vgpr_count"],
        spill_bytes=max(notes["private_segment_fixed_size"], 4 * notes["vgpr_spill_count"]),
        shared_bytes=compiled.metadata.shared,
        tensor_memory=0,
        mma="+".join(sorted(products)),
        wide_loads=_wide_share(block_loads(compiled.asm["ttgir"], text)),
        copies_ahead=False,
        multiplies_in_loop=False,
        grid_dependencies=0,
    )


def _wide_share(loads: list[Load]) -> float | None:
    total = sum(load.num_bytes for load in loads)
    return sum(load.num_bytes for load in loads if load.is_wide) / total if total else None


def _mma(instructions: Iterable[str]) -> str:
    names = set()
    for text in instructions:
        if found := re.match(r"(HMMA|HGMMA|UTC\wMMA)\b(\S*)", text):
            names.add(found.group(1) + (" tf32" if "TF32" in found.group(2) else ""))
    return "+".join(sorted(names))


def _plain_products(listing: str) -> str:
    return "FFMA" if re.search(r"\bFFMA2?\b", listing) else ""


def _in_loops(instructions: list[tuple[int, str]]) -> Iterator[str]:
    """Those between a branch backwards and where it leads."""
    branches = [(address, re.match(r"BRA\b.*\b0x([0-9a-f]+)", text)) for address, text in instructions]
    loops = [(int(found.group(1), 16), address) for address, found in branches if found]
    return (text for address, text in instructions if any(first <= address <= last for first, last in loops))


def _cuobjdump(flag: str, binary: Path) -> str:
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    return subprocess.run([str(tool), flag, str(binary)], capture_output=True, text=True, check=True).stdout
