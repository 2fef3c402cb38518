"""Which pages of a decoder's key-value cache hold what, and for how many: counts, and names by content. Pure: no torch.

A page holds the keys and values of `page_tokens` tokens. A full one may be *published* under a key that says all that
its content depends on (`first_key`, `next_key`); who comes with the same key later shares it. A published page that
nobody references any more is *idle*: it keeps its content until its room is needed, least recently used first.

Page 0 is scratch, written by rows of no sequence, and never handed out. Always
`num_free + num_idle + num_referenced = count - 1`. Knows neither sequences nor tenants.
"""

import hashlib
from collections import OrderedDict, deque

import numpy as np
from numpy.typing import NDArray

from adamix.errors import InternalError

_KEY_BYTES = 32


def first_key(tenant: str, digest: str, backbone: str) -> bytes:
    """What the keys of all of one tenant's pages under one adapter begin with.

    Args:
        digest: of the adapter; empty is the backbone alone.
        backbone: its fingerprint.
    """
    name = hashlib.blake2b(digest_size=_KEY_BYTES, person=b"adapter" if digest else b"backbone alone")
    for part in (tenant.encode(), digest.encode(), backbone.encode()):
        # With their lengths, so that no two of these names run into the same bytes.
        name.update(len(part).to_bytes(8, "little"))
        name.update(part)
    return name.digest()


def next_key(before: bytes, tokens: NDArray[np.int32]) -> bytes:
    """The key of a full page of `tokens`, behind the page with the key `before`; behind none, a `first_key`."""
    return hashlib.blake2b(tokens.astype("<i4").tobytes(), key=before, digest_size=_KEY_BYTES).digest()


class Pages:
    """The pages of one cache.

    Args:
        count: of them, with page 0. Two at least.
        page_tokens: that a page has room for.
    """

    def __init__(self, count: int, page_tokens: int = 16) -> None:
        if count < 2 or page_tokens < 1:
            raise InternalError(f"{count} pages of {page_tokens} tokens hold nothing")
        self.count = count
        self.page_tokens = page_tokens
        self._references = [0] * count
        self._free = deque(range(1, count))
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        # Least recently used first.
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """How many can be taken."""
        return len(self._free) + len(self._idle)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    @property
    def num_referenced(self) -> int:
        return self.count - 1 - self.num_available

    def needed(self, num_tokens: int) -> int:
        """How many pages so many tokens take."""
        return -(-num_tokens // self.page_tokens)

    def find(self, key: bytes) -> int | None:
        """The page published under a key. To be shared before anything is taken."""
        return self._page_of.get(key)

    def is_idle(self, page: int) -> bool:
        return page in self._idle

    def is_shared(self, page: int) -> bool:
        """Whether there is more than one reference to it."""
        return self._references[page] > 1

    def take(self) -> int:
        """A page with one reference and no content; the last resort is an idle one. Raises InternalError if none is
        available."""
        if self._free:
            page = self._free.popleft()
        elif self._idle:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
        else:
            raise InternalError("no page is left")
        self._references[page] = 1
        return page

    def share(self, page: int) -> None:
        """One reference more, to a page that somebody references or that is idle."""
        if not self._references[page]:
            if page not in self._idle:
                raise InternalError(f"page {page} has no content to be shared")
            del self._idle[page]
        self._references[page] += 1

    def drop(self, page: int) -> None:
        """One reference less. With the last one, a published page becomes idle, any other free."""
        if not self._references[page]:
            raise InternalError(f"page {page} is dropped more often than referenced")
        self._references[page] -= 1
        if not self._references[page]:
            if page in self._key_of:
                self._idle[page] = None
            else:
                self._free.append(page)

    def publish(self, page: int, key: bytes) -> None:
        """A referenced page is full, and found by its key from now on; unless another one is found by it already."""
        if not self._references[page]:
            raise InternalError(f"page {page} is published by nobody")
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def withdraw(self, page: int) -> None:
        """A page is no longer found; those who reference it keep it."""
        if (key := self._key_of.pop(page, None)) is not None:
            del self._page_of[key]
            if page in self._idle:
                del self._idle[page]
                self._free.append(page)
