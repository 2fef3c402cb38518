"""Logging is one for a whole process: what a test makes of it ends with the test."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from adamix_server.telemetry import logs


@contextmanager
def own_logs() -> Iterator[None]:
    """In here, `logs.divert` and `logs.configure` act as in a process of their own."""
    root, stderr = logging.getLogger(), sys.stderr
    handlers, level = list(root.handlers), root.level
    root.handlers.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs._Process, "writer", None)
        try:
            yield
        finally:
            logs.flush(10)
            sys.stderr = stderr
            logging.captureWarnings(False)
            root.handlers[:] = handlers
            root.setLevel(level)
