"""Keeps versions that fail away from the device, and tells the front ends which these are.

`quarantine.py` keeps the count; here it is fed with what a step gave, and what follows from it is said to whoever has
introduced itself. Knows neither how requests end nor what they are computed with.
"""

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from adamix.errors import AdamixError, FailedPrecondition
from adamix_server.channel.channel import EngineChannel, Peer
from adamix_server.channel.engine_frames import Hello, Quarantined, QuarantinedVersion
from adamix_server.engine.quarantine import Quarantine
from adamix_server.engine.request import Request

log = logging.getLogger(__name__)


class Isolation:
    """The quarantine of one engine, and the front ends that know of it."""

    def __init__(self, channel: EngineChannel, hello: Hello) -> None:
        self._channel = channel
        self._hello = hello
        self._quarantine = Quarantine()
        # The front ends that have introduced themselves.
        self._peers: dict[Peer, None] = {}

    @property
    def num_quarantined(self) -> int:
        return len(self._quarantine.reasons)

    def introduce(self, peer: Peer) -> None:
        """A front end wants to know, now and whenever that changes."""
        self._peers[peer] = None
        self._channel.send(peer, self._quarantined())

    def error(self, tenant: str, digest: str) -> FailedPrecondition | None:
        """What the requests of a tenant for an adapter are told, if it is quarantined."""
        return self._quarantine.error(tenant, digest)

    def lift(self, tenant: str, digest: str) -> None:
        """End the quarantine of an adapter for a tenant, if there is one."""
        if self._quarantine.lift(tenant, digest):
            self._tell()

    def judge(
        self,
        requests: Sequence[Request],
        outcomes: Sequence[NDArray[np.float32] | AdamixError],
        is_finite_without: Callable[[Request], bool],
    ) -> list[str]:
        """Hold the failures of one step against their adapters. The adapters that are quarantined since."""

        def is_well_without(request: Request) -> bool:
            try:
                return is_finite_without(request)
            except Exception:
                # What ends even this is the device's fault, or the backbone's: the device has been looked at.
                log.exception("a request failed without its adapter, too", extra={"request": request.row.id})
                return False

        newly = self._quarantine.judge(requests, outcomes, is_well_without, time.monotonic())
        for tenant, digest in newly:
            log.error("a version is quarantined", extra={"tenant": tenant, "digest": digest})
        if newly:
            self._tell()
        return [digest for _, digest in newly]

    def _tell(self) -> None:
        told = self._quarantined()
        for peer in self._peers:
            self._channel.send(peer, told)

    def _quarantined(self) -> Quarantined:
        return Quarantined(
            generation=self._hello.generation,
            engine_id=self._hello.engine_id,
            versions=[
                QuarantinedVersion(tenant=tenant, digest=digest, reason=reason)
                for (tenant, digest), reason in self._quarantine.reasons.items()
            ],
        )
