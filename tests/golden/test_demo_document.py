"""The document of `adamix demo --json`, which is minutes of work: its keys, its tasks, and that nothing failed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# As many requests as there was time for; what a model that was trained in a minute says; speeds.
_AS_IT_COMES = {"requests_meanwhile", "sent", "old", "new", "label", "label_id", "score", "scores", "max_abs_diff"}
# What was trained for half a minute writes what it writes, on each machine something else.
_AS_IT_COMES |= {"before", "text", "finish_reason", "usage", "tokens_per_s"}
_AS_IT_COMES |= {"rows_per_s", "retention", "engine_retention", "over_padded"}


@pytest.mark.long
@pytest.mark.weights
def test_a_demo(golden: Callable[..., None], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "adamix_server", "demo", "--out", str(tmp_path / "demo"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    golden("demo.json", _fixed(json.loads(done.stdout)))


def _fixed(value: Any, mask: str | None = None) -> Any:
    if isinstance(value, dict):
        return {key: _fixed(item, f"<{key}>" if key in _AS_IT_COMES else mask) for key, item in value.items()}
    if isinstance(value, list):
        return [_fixed(item, mask) for item in value]
    return value if mask is None else mask
