"""How wide a compiled kernel's loads of matrices are, which decides whether it can be as fast as memory.

A thread fetches up to 16 bytes in one instruction, if the compiler knows that the address is a multiple of 16. It is
easily made to lose sight of that: then each element is fetched by itself and nothing is copied ahead, yet the results
stay right, and only a look at the instructions shows it. Biases, norm weights and records may be fetched in pieces. So
each instruction is traced to the line of the kernel it comes from, and counts if that line loads a block of rows or
weights. A block may be too small to give each thread 16 bytes; then its share of the block is wide enough.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

# In Triton's GPU dialect: a load whose result has two dimensions, neither of them trivial, and where it stands.
_BLOCK_LOAD = re.compile(
    r"(?:tt\.load|async_copy_global_to_local|buffer_load\w*)\b.*? : "
    r"tensor<(\d{2,})x(\d{2,})x(?:!tt\.ptr<)?[a-z]+(\d+)\b.*loc\((#loc\d*)\)$",
    re.MULTILINE,
)
_THREADS = re.compile(r'"ttg\.(?:num-warps|threads-per-warp)" = (\d+)')
_PLACE = re.compile(r"^(#loc\d*) = loc\((.*)\)$", re.MULTILINE)
_REFERENCE = re.compile(r"#loc\d*")
_FILE_PLACE = re.compile(r'":(\d+):(\d+)')
# In the assembly of both vendors: the place of the instructions that follow.
_LINE_MARK = re.compile(r"\s*\.loc\s+\d+\s+(\d+)\s+(\d+)")
_NVIDIA_LOAD = re.compile(r"\bld\.global(?:\.\w+)*?(?:\.v(\d))?\.[a-z](\d+)\s")
_NVIDIA_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\b.*\],\s*(0x[0-9a-f]+|\d+)")
_AMD_LOAD = re.compile(r"\b(?:global|buffer|flat)_load_(\w+)")
_AMD_BYTES = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}
_WIDEST = 16

Place = tuple[int, int]


@dataclass(frozen=True)
class Load:
    """One instruction.

    Attributes:
        num_bytes: that a thread fetches.
        is_wide: these are 16, or all of the block that falls to a thread.
        is_copy: they go to shared memory, and the thread goes on meanwhile.
    """

    num_bytes: int
    is_wide: bool
    is_copy: bool


def block_loads(dialect: str, assembly: str) -> list[Load]:
    """The instructions that load blocks of rows and weights.

    Args:
        dialect: the kernel in Triton's GPU dialect ("ttgir"), with the places of its operations.
        assembly: the same as PTX or AMD assembly.
    """
    wide = _wide_enough(dialect)
    found, place = [], (0, 0)
    for line in assembly.splitlines():
        if mark := _LINE_MARK.match(line):
            place = (int(mark.group(1)), int(mark.group(2)))
        elif place in wide and (fetched := _fetched(line)):
            num_bytes, is_copy = fetched
            found.append(Load(num_bytes, num_bytes >= wide[place], is_copy))
    return found


def _wide_enough(dialect: str) -> Mapping[Place, int]:
    """For each place that loads blocks, the bytes that make an instruction wide: those of the smallest block."""
    definitions = dict(_PLACE.findall(dialect))
    threads = math.prod(map(int, _THREADS.findall(dialect)))
    wide: dict[Place, int] = {}
    for rows, columns, bits, name in _BLOCK_LOAD.findall(dialect):
        # A place may be a name for another, or a call; what stands first leads to the operation itself.
        while not (found := _FILE_PLACE.search(definitions[name])):
            name = _REFERENCE.findall(definitions[name])[0]  # noqa: PLW2901 - follows the chain to its end
        place = (int(found.group(1)), int(found.group(2)))
        of_thread = int(rows) * int(columns) * int(bits) // 8 // threads
        wide[place] = min(wide.get(place, _WIDEST), of_thread)
    return wide


def _fetched(line: str) -> tuple[int, bool] | None:
    """Bytes, and whether they are copied; None for any other instruction."""
    if found := _NVIDIA_LOAD.search(line):
        return int(found.group(1) or 1) * int(found.group(2)) // 8, False
    if found := _NVIDIA_COPY.search(line):
        return int(found.group(1), 0), True
    if found := _AMD_LOAD.search(line):
        # The rest are loads of one or two bytes, of several kinds.
        return _AMD_BYTES.get(found.group(1), 2), False
    return None
