"""Keys and values of all running texts, in pages on the device. Which page is whose is the scheduler's to say.

Page 0 is nobody's: what fills a step up to a size writes there. Pages are zeroed once, here; later a page that changes
its owner keeps what was in it, and nobody reads beyond the tokens that its own sequence has.
"""

from dataclasses import dataclass

import torch

from adamix.backbones.decoders import KvShape
from adamix_kernels.paged import PAGE_TOKENS


def kv_page_bytes(shape: KvShape, dtype: torch.dtype) -> int:
    """Memory of one page, keys and values in all layers together."""
    return PAGE_TOKENS * shape.features * dtype.itemsize


@dataclass(frozen=True)
class KvCache:
    """The pages of every layer.

    Attributes:
        keys: of each layer `[pages, kv heads, features, tokens]`.
        values: of each layer `[pages, kv heads, tokens, features]`.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @classmethod
    def allocate(cls, shape: KvShape, num_pages: int, dtype: torch.dtype, device: torch.device) -> "KvCache":
        """`num_pages` pages, page 0 among them. Raises the device's own error if there is no room."""
        heads, features = shape.num_kv_heads, shape.head_size
        sizes = (num_pages, heads, features, PAGE_TOKENS), (num_pages, heads, PAGE_TOKENS, features)
        keys, values = (
            tuple(torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.num_layers)) for size in sizes
        )
        return cls(keys, values)

    @property
    def num_pages(self) -> int:
        return len(self.keys[0])
