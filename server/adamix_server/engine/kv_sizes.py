"""How many pages of keys and values a decoder has: by what was asked for, or by what memory is free.

Knows sizes alone; what is in a page, and what it is made of, others know.
"""

from pathlib import Path

import torch

from adamix.errors import InvalidConfig

# Of the host's free memory so much and no more, since its other programs want some, too; of a device's, which nobody
# else uses, nearly all. The rest is for what a step computes.
HOST_SHARE, MOST_HOST_BYTES = 0.25, 4 << 30
DEVICE_SHARE = 0.8


def num_pages(kv_bytes: int, page_bytes: int, page_tokens: int, window: int, free_bytes: int, *, is_host: bool) -> int:
    """Pages that texts may have, without the one that is nobody's.

    Args:
        kv_bytes: for all of them; 0 takes a share of `free_bytes`.
        window: tokens of the longest text there can be: so many have room at least.
        is_host: they lie in the host's memory.

    Raises:
        InvalidConfig: there is no room for `window` tokens.
    """
    found = kv_bytes
    if not found:
        found = min(int(HOST_SHARE * free_bytes), MOST_HOST_BYTES) if is_host else int(DEVICE_SHARE * free_bytes)
    most, least = found // page_bytes - 1, -(-window // page_tokens)
    if most < least:
        has = f"--kv-bytes {kv_bytes} is" if kv_bytes else f"the {found} bytes that are taken of what is free now are"
        raise InvalidConfig(
            f"one text of the backbone's full length, {window} tokens, takes {(least + 1) * page_bytes} bytes for keys "
            f"and values, and {has} less: say --kv-bytes {(least + 1) * page_bytes}, or more, where there is memory "
            "for it",
            field="kv_bytes",
        )
    return most


def free_bytes(device: torch.device) -> int:
    """Memory of a device that nobody uses now; of the CPU what the host has available, or this container."""
    if device.type != "cpu":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return min(_available(Path("/proc/meminfo")), _left_to_group(Path("/sys/fs/cgroup")))


def _available(meminfo: Path) -> int:
    for line in _lines(meminfo):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) << 10
    # Not Linux: enough for what is taken at most.
    return round(MOST_HOST_BYTES / HOST_SHARE)


def _left_to_group(group: Path) -> int:
    """What a container's limit leaves it; without one, more than anybody has."""
    limit, used = _lines(group / "memory.max"), _lines(group / "memory.current")
    if not limit or not used or not limit[0].isdecimal():
        return 1 << 62
    # Files that were read are let go of when memory is wanted.
    cached = [int(line.split()[1]) for line in _lines(group / "memory.stat") if line.startswith("inactive_file ")]
    return max(int(limit[0]) - int(used[0]) + sum(cached), 0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
