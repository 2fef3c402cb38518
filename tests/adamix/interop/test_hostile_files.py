"""Files of strangers: nothing of them runs, nothing is waited for, and each gets one sentence."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from adamix.errors import InvalidAdapter
from adamix.interop.reading import Ledger, float32, read_json, read_pickle, read_tensors, state_dict, tensor_data


class Bomb:
    """Runs a command when it is unpickled by something that runs what pickles say."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("dump", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_pickle_does_not_run(dump: Callable[[Any, Path], None], tmp_path: Path) -> None:
    path, trace = tmp_path / "model.bin", tmp_path / "it-ran"
    dump({"weight": torch.zeros(2), "more": Bomb(f"touch {trace}")}, path)
    with pytest.raises(InvalidAdapter, match=r"a pickle that holds more than tensors: it is not loaded"):
        read_pickle(path)
    assert not trace.exists()


def test_pickles_of_tensors_are_read(tmp_path: Path) -> None:
    """In the zip archives of today and in the older kind."""
    for name, is_zip in (("new.bin", True), ("old.bin", False)):
        torch.save({"w": torch.arange(3.0)}, tmp_path / name, _use_new_zipfile_serialization=is_zip)
        assert state_dict(read_pickle(tmp_path / name), name)["w"].tolist() == [0, 1, 2]


@cache
def undamaged(kind: str) -> bytes:
    """Written once: the older kind names a storage by its address, so that its length is another at each writing."""
    tensors = {"w": torch.arange(6.0).reshape(2, 3)}
    if kind == "safetensors":
        return save(tensors)
    written = BytesIO()
    torch.save(tensors, written, _use_new_zipfile_serialization=kind == "zip")
    return written.getvalue()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_files_are_one_sentence(kind: str, data: st.DataObject, tmp_path: Path) -> None:
    """Cut anywhere, with any byte changed: read or refused, never another error."""
    path = tmp_path / "weights"
    content = bytearray(undamaged(kind))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    message = ""
    try:
        value = read_tensors(path) if kind == "safetensors" else read_pickle(path)
        for name, tensor in state_dict(value, "weights").items():
            tensor_data(name, tensor)
    except InvalidAdapter as error:
        message = error.message
    assert "\n" not in message


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    """A record of zeros may become a thousand times its size."""
    torch.save({"w": torch.zeros(1 << 16)}, tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as plain, zipfile.ZipFile(tmp_path / "packed", "w") as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    with pytest.raises(InvalidAdapter, match="compressed or oversized records"):
        read_pickle(tmp_path / "packed")


def test_sizes_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    torch.save({"w": torch.zeros(1 << 19)}, path)
    for read in (read_pickle, read_tensors):
        with pytest.raises(InvalidAdapter, match=r"large\.bin is over 1 MiB"):
            read(path, 1 << 20)
    config = tmp_path / "config.json"
    config.write_bytes(b'{"a": "' + b"x" * (1 << 20) + b'"}')
    with pytest.raises(InvalidAdapter, match=r"config\.json is over 1 MiB"):
        read_json(config)


def test_a_view_that_claims_more_than_it_holds_is_refused() -> None:
    with pytest.raises(InvalidAdapter, match="not those it holds"):
        float32("w", torch.zeros(1).expand(1 << 20, 1 << 10))
    assert float32("w", torch.arange(6.0).reshape(2, 3).T).tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, dtype=torch.float64),
        torch.zeros(2, dtype=torch.complex64),
        torch.eye(2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(0),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ],
)
def test_tensors_that_are_not_plain_are_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(InvalidAdapter, match=r"^w "):
        tensor_data("w", tensor)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe{}", b"[1]", b"{", b'{"a": NaN}', b"[" * 100_000, b""],
    ids=["not UTF-8", "no object", "cut", "NaN", "deep", "empty"],
)
def test_a_config_that_is_no_json_object_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(InvalidAdapter, match=r"^config\.json is not "):
        read_json(path)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """Neither a pipe nor a device, nor through a link; a link to a file is one, as in the hub's cache."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "linked").symlink_to("/dev/zero")
    for name in ("pipe", "linked", "."):
        with pytest.raises(InvalidAdapter, match="is not a regular file"):
            read_pickle(tmp_path / name)
    (tmp_path / "blob").write_text(json.dumps({"a": 1}))
    (tmp_path / "config.json").symlink_to("blob")
    assert read_json(tmp_path / "config.json") == {"a": 1}
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        read_json(tmp_path / "loop")


def test_every_tensor_is_accounted_for() -> None:
    ledger = Ledger({"a": torch.zeros(1), "b": torch.zeros(1)}, "file")
    ledger.take("a")
    ledger.take("c")
    with pytest.raises(InvalidAdapter, match=r"file: 1 tensors match; 1 missing \(c\); 1 not understood \(b\)"):
        ledger.close()


@pytest.mark.parametrize("value", [{1: torch.zeros(1)}, {"a": 1}, {"a\n": torch.zeros(1)}, {}, [torch.zeros(1)], None])
def test_what_is_no_state_dict_is_refused(value: object) -> None:
    with pytest.raises(InvalidAdapter):
        state_dict(value, "file")
