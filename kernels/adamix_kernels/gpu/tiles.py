"""The tiles of a batch on the device: what a grid of programs walks over.

Built on the host from `Segments`, uploaded once for each height of tiles, and kept for as long as the segments live:
every layer of a forward pass asks for the same few. A CUDA graph holds the address of what was uploaded when it was
captured; `reserve` therefore sets room aside before the capture, and `refill` writes another batch there before a
replay.

Shapes: N tiles.
"""

from dataclasses import dataclass
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamix_kernels.segments import Segments

UNUSED = -1


@dataclass(frozen=True)
class Room:
    """What a captured graph is made for: batches of the captured number of rows, or fewer, and no more than this.

    Attributes:
        max_segments: the most segments of a batch.
        max_rank: the largest rank of an adapter. The rows of one above it come out as NaN.
    """

    max_segments: int
    max_rank: int


class DeviceTiles:
    """The tile maps of one batch on one device; with `room`, of all the batches that are put here one after another."""

    def __init__(self, segments: Segments, device: torch.device, room: Room | None = None) -> None:
        # Weak, or the batch would be kept alive by what is kept for it.
        self._segments = ref(segments)
        self._num_rows = segments.num_rows
        self._device = device
        self.room = room
        self._maps: dict[int, Tensor] = {}
        self._is_refilled = False

    def of(self, block_rows: int) -> Tensor:
        """int32 [N, 4]: down slot, up slot, first row and end row of each tile of at most `block_rows` rows.

        Tiles that are set aside and not used name slot -1.
        """
        found = self._maps.get(block_rows)
        if found is None:
            segments = self._segments()
            if segments is None or self._is_refilled:
                raise ValueError(f"the batch whose tiles of {block_rows} rows are asked for is no longer here")
            # Ordinary tensors even where the first to ask does so in inference mode: others may write to them later.
            with torch.inference_mode(False):
                host = _pinned(self._host(segments, block_rows), self._device)
                found = self._maps[block_rows] = host.to(self._device, non_blocking=True)
        return found

    def refill(self, segments: Segments) -> None:
        """Write another batch of as many rows into the maps there are, on the current stream.

        From then on there are no maps but those, which the captured ops asked for.

        Raises:
            ValueError: nothing was reserved, or the batch does not fit what was.
        """
        if self.room is None or segments.num_rows > self._num_rows:
            raise ValueError(f"no room was reserved for a batch of {segments.num_rows} rows")
        if len(segments) > self.room.max_segments:
            raise ValueError(f"room was reserved for {self.room.max_segments} segments; the batch has {len(segments)}")
        self._is_refilled = True
        for block_rows, tiles in self._maps.items():
            tiles.copy_(_pinned(self._host(segments, block_rows), self._device), non_blocking=True)

    def _host(self, segments: Segments, block_rows: int) -> NDArray[np.int32]:
        tile_map = segments.tile_map(block_rows)
        columns = (tile_map.slot, tile_map.up_slot, tile_map.first_row, tile_map.end_row)
        used = np.stack(columns, axis=1)
        if self.room is None:
            return used
        # A segment fills its tiles but for the last: T rows in A segments need no more than this.
        capacity = self._num_rows // block_rows + min(self.room.max_segments, self._num_rows)
        tiles = np.full((capacity, 4), UNUSED, np.int32)
        tiles[: len(used)] = used
        return tiles


_of_batch: WeakKeyDictionary[Segments, dict[torch.device, DeviceTiles]] = WeakKeyDictionary()


def tiles_of(segments: Segments, device: torch.device) -> DeviceTiles:
    """The tiles of this batch, shared by all who ask."""
    on_devices = _of_batch.setdefault(segments, {})
    found = on_devices.get(device)
    if found is None:
        found = on_devices[device] = DeviceTiles(segments, device)
    return found


def reserve(segments: Segments, device: torch.device, room: Room) -> DeviceTiles:
    """Room for other batches behind these segments: ops that are captured with them read what `refill` wrote last.

    The captured batch itself has to fit. Keep `segments` for as long as the graph.
    """
    tiles = DeviceTiles(segments, device, room)
    if len(segments) > room.max_segments:
        raise ValueError(f"the batch has {len(segments)} segments, and the room is for {room.max_segments}")
    _of_batch.setdefault(segments, {})[device] = tiles
    return tiles


def _pinned(array: NDArray[np.int32], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor
