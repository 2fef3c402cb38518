"""Packed adapters in host memory, the least recently used dropped first. Knows of them only how large they are."""

from collections import OrderedDict

from adamix_server.engine.residency.packing import PackedAdapter


class HostCache:
    """Packed adapters by digest, at most `capacity_bytes` in all.

    One adapter larger than the capacity is refused by `put`, not an error: it is then loaded again when next needed.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.evictions = 0
        self._values: OrderedDict[str, PackedAdapter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, digest: str) -> bool:
        return digest in self._values

    def get(self, digest: str) -> PackedAdapter | None:
        """The value, marked as just used."""
        value = self._values.get(digest)
        if value is not None:
            self._values.move_to_end(digest)
        return value

    def put(self, digest: str, value: PackedAdapter) -> None:
        self.discard(digest)
        if value.num_bytes > self.capacity_bytes:
            return
        while self.used_bytes + value.num_bytes > self.capacity_bytes:
            _, dropped = self._values.popitem(last=False)
            self.used_bytes -= dropped.num_bytes
            self.evictions += 1
        self._values[digest] = value
        self.used_bytes += value.num_bytes

    def discard(self, digest: str) -> None:
        if (value := self._values.pop(digest, None)) is not None:
            self.used_bytes -= value.num_bytes
