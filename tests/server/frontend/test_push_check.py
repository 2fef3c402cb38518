"""What `--push` finds out before a training: whether this server could serve what comes of it."""

import asyncio

import msgspec
import pytest

from adamix.config import ClozeConfig, HeadConfig
from adamix.errors import FailedPrecondition
from adamix.files.manifest import BackboneSpec
from adamix_server.cli.push import Push
from adamix_testing.harness import Harness


async def test_a_head_of_the_servers_own_backbone_can_be_pushed_but_no_cloze(
    harness: Harness, spec: BackboneSpec
) -> None:
    def work() -> None:
        push = Push(harness.address)
        # Also that of texts, which is the backbone's own.
        push.check("task", spec, HeadConfig())
        with pytest.raises(FailedPrecondition) as refused:
            push.check("task", spec, HeadConfig(cloze=ClozeConfig()))
        assert refused.value.reason == "HEAD_UNSUPPORTED"
        with pytest.raises(FailedPrecondition) as refused:
            push.check("task", msgspec.structs.replace(spec, fingerprint="c" * 64), HeadConfig())
        assert refused.value.reason == "BACKBONE_MISMATCH"

    await asyncio.to_thread(work)
