"""How wide a compiled kernel's loads of matrices are, which decides whether it can be as fast as memory.

A thread fetches up to 16 bytes in one instruction, if the compiler knows that the address is a multiple of 16. It is
easily made to lose sight of that: then each element is fetched by itself and nothing is copied ahead, yet the results
stay right, and only a look at the instructions shows it. Biases, norm weights and records may well be fetched in pieces.
So each instruction is traced to the line of the kernel it comes from, and counts if that line loads a block of rows or
weights.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# In Triton's GPU dialect: a load whose result has two dimensions, neither of them trivial, and where it stands.
_BLOCK_LOAD = re.compile(
    r"(?:tt\.load|async_copy_global_to_local|buffer_load\w*)\b.*? : tensor<\d{2,}x\d{2,}x.*loc\((#loc\d*)\)$",
    re.MULTILINE,
)
_PLACE = re.compile(r"^(#loc\d*) = loc\((.*)\)$", re.MULTILINE)
_REFERENCE = re.compile(r"#loc\d*")
_FILE_PLACE = re.compile(r'":(\d+):(\d+)')
# In the assembly of both vendors: the place of the instructions that follow.
_LINE_MARK = re.compile(r"\s*\.loc\s+\d+\s+(\d+)\s+(\d+)")
_NVIDIA_LOAD = re.compile(r"\bld\.global(?:\.\w+)*?(?:\.v(\d))?\.[a-z](\d+)\s")
_NVIDIA_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\b.*\],\s*(0x[0-9a-f]+|\d+)")
_AMD_LOAD = re.compile(r"\b(?:global|buffer|flat)_load_(\w+)")
_AMD_BYTES = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}

Place = tuple[int, int]


@dataclass(frozen=True)
class Load:
    """One instruction: the bytes a thread fetches, and whether they go to shared memory while the thread goes on."""

    num_bytes: int
    is_copy: bool


def block_loads(dialect: str, assembly: str) -> list[Load]:
    """The instructions that load blocks of rows and weights.

    Args:
        dialect: the kernel in Triton's GPU dialect ("ttgir"), with the places of its operations.
        assembly: the same as PTX or AMD assembly.
    """
    places = set(_places_of_blocks(dialect))
    found, place = [], (0, 0)
    for line in assembly.splitlines():
        if mark := _LINE_MARK.match(line):
            place = (int(mark.group(1)), int(mark.group(2)))
        elif place in places and (load := _load(line)):
            found.append(load)
    return found


def _places_of_blocks(dialect: str) -> Iterator[Place]:
    definitions = dict(_PLACE.findall(dialect))
    for name in _BLOCK_LOAD.findall(dialect):
        # A place may be a name for another, or a call; what stands first leads to the operation itself.
        while not (found := _FILE_PLACE.search(definitions[name])):
            name = _REFERENCE.findall(definitions[name])[0]  # noqa: PLW2901 - follows the chain to its end
        yield int(found.group(1)), int(found.group(2))


def _load(line: str) -> Load | None:
    if found := _NVIDIA_LOAD.search(line):
        return Load(int(found.group(1) or 1) * int(found.group(2)) // 8, is_copy=False)
    if found := _NVIDIA_COPY.search(line):
        return Load(int(found.group(1), 0), is_copy=True)
    if found := _AMD_LOAD.search(line):
        # The rest are loads of one or two bytes, of several kinds.
        return Load(_AMD_BYTES.get(found.group(1), 2), is_copy=False)
    return None
