"""What the author of an adapter file may try beyond a wrong byte: cost, code, races, two readings of one file."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from adamix.errors import InvalidAdapter
from adamix.files import disk
from adamix.files.adapter_file import decode
from adamix.files.manifest import BackboneSpec
from adamix.files.tensors import MAX_HEADER_BYTES
from adamix_server.frontend.control.validation import judge

Stored = Callable[[bytes], Path]

ENTRY = '"{:x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'

# Judges the file of its first argument as the child of a server does, and says what that cost.
MEASURED = """
import json, os, pathlib, sys, time
import msgspec
from adamix.errors import InvalidAdapter
from adamix.files.manifest import BackboneSpec
from adamix_server.adapters import validation
spec = msgspec.json.decode(sys.stdin.buffer.read(), type=BackboneSpec)
order = validation._Order(path=os.fsencode(sys.argv[1]), spec=spec, expected_digest=None, timeout_s=30.0)
# Not ru_maxrss, which begins with what the parent had.
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) << 10
before, began = peak(), time.process_time()
try:
    validation.judge(validation._read(order), spec)
except InvalidAdapter as error:
    print(json.dumps([error.reason, time.process_time() - began, peak() - before]))
"""


def measured(path: Path, spec: BackboneSpec) -> tuple[str, float, int]:
    """(reason, CPU seconds, bytes of memory beyond what the imports took)."""
    child = subprocess.run(
        [sys.executable, "-I", "-c", MEASURED, str(path)],
        input=msgspec.json.encode(spec),
        capture_output=True,
        check=True,
    )
    reason, cpu_s, num_bytes = json.loads(child.stdout)
    return reason, cpu_s, num_bytes


def of_empty_tensors(count: int) -> bytes:
    text = ("{" + ",".join(map(ENTRY.format, range(count))) + "}").encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(("count", "reason"), [(1_500_000, "HEADER_TOO_LARGE"), (18_000, "TOO_LARGE")])
def test_a_file_of_tensors_of_no_size_costs_next_to_nothing(
    stored: Stored, spec: BackboneSpec, count: int, reason: str
) -> None:
    """The larger would take gigabytes and half a minute to parse; the smaller just fits the largest header."""
    data = of_empty_tensors(count)
    assert (len(data) < MAX_HEADER_BYTES) == (count == 18_000)
    found, cpu_s, num_bytes = measured(stored(data), spec)
    print(f"{count} tensors in {len(data) >> 20} MiB: {cpu_s * 1000:.1f} ms, {num_bytes >> 20} MiB")
    assert found == reason
    # The wall clock would measure who else uses the machine.
    assert cpu_s < 0.1
    assert num_bytes < 20 << 20


def header_of(data: bytes) -> tuple[str, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end].decode().rstrip(), data[end:]


def with_header(text: str, body: bytes) -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(8, "little") + raw + body


TWICE: dict[str, Callable[[str], str]] = {
    "a tensor": lambda text: (
        text[:-1] + ',"head.out_proj.bias":' + text.split('"head.out_proj.bias":')[1].split("}")[0] + "}}"
    ),
    "the metadata": lambda text: text[:-1] + ',"__metadata__":{}}',
    "a shape": lambda text: text.replace('"dtype":"F32"', '"dtype":"F32","dtype":"F32"', 1),
    "a key of the manifest": lambda text: text.replace(
        '\\"max_length\\":32', '\\"max_length\\":32,\\"max_length\\":32', 1
    ),
}


@pytest.mark.parametrize("what", TWICE)
def test_what_is_said_twice_is_refused(spec: BackboneSpec, valid: bytes, what: str) -> None:
    """Another reader could take the other one."""
    text, body = header_of(valid)
    twice = TWICE[what](text)
    assert twice != text
    json.loads(twice)  # well-formed for those who do not look
    judge(with_header(text, body), spec)
    with pytest.raises(InvalidAdapter) as caught:
        judge(with_header(twice, body), spec)
    assert caught.value.reason == "HEADER_INVALID"


def zip_of(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("adapter.safetensors", data)
    return file.getvalue()


def tar_of(data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("adapter.safetensors")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def torch_file_of(data: bytes, *, old: bool) -> bytes:
    file = io.BytesIO()
    torch.save(
        {"weight": torch.frombuffer(bytearray(data[-64:]), dtype=torch.uint8)},
        file,
        _use_new_zipfile_serialization=not old,
    )
    return file.getvalue()


OTHER_FILES: dict[str, Callable[[bytes], bytes]] = {
    "zip": zip_of,
    "tar": tar_of,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: b"\x28\xb5\x2f\xfd" + data,
    "7z": lambda data: b"7z\xbc\xaf\x27\x1c" + data,
    "torch": lambda data: torch_file_of(data, old=False),
    "torch, old": lambda data: torch_file_of(data, old=True),
    "numpy": lambda data: b"\x93NUMPY\x01\x00" + data,
    "elf": lambda data: b"\x7fELF" + data,
    **{f"pickle {n}": lambda data, n=n: pickle.dumps(data, protocol=n) for n in range(pickle.HIGHEST_PROTOCOL + 1)},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_files_of_other_kinds_are_refused(spec: BackboneSpec, valid: bytes, name: str) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        judge(OTHER_FILES[name](valid), spec)
    assert caught.value.reason in {"FORMAT_UNKNOWN", "HEADER_TOO_LARGE", "TRUNCATED"}


# Judges every file of a directory and prints what of it, if anything, ran code, opened a connection or wrote a file.
AUDITED = """
import os, pathlib, sys
import msgspec
from adamix.errors import InvalidAdapter
from adamix.files.manifest import BackboneSpec
from adamix_server.adapters import validation
spec = msgspec.json.decode(sys.stdin.buffer.read(), type=BackboneSpec)
paths = sorted(pathlib.Path(sys.argv[1]).iterdir())
seen = []
BAD = ("pickle.", "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "ctypes.", "exec", "compile", "import")
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith(BAD) else None)
refused = 0
for path in paths:
    order = validation._Order(path=os.fsencode(path), spec=spec, expected_digest=None, timeout_s=30.0)
    data = path.read_bytes()
    try:
        validation.judge(data, spec)
    except InvalidAdapter:
        refused += 1
print(refused, seen)
"""


def test_judging_a_file_runs_imports_and_connects_to_nothing(spec: BackboneSpec, valid: bytes, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path}/ran",)

    files = {name: build(valid) for name, build in OTHER_FILES.items()}
    files["payload"] = pickle.dumps(Payload())
    text, body = header_of(valid)
    for url in ("http://169.254.169.254/x", "file:///etc/passwd", "s3://bucket/key", "gopher://x"):
        files[url] = with_header(text.replace('\\"name\\":\\"tiny\\"', f'\\"name\\":\\"{url}\\"'), body)
    directory = tmp_path / "files"
    directory.mkdir()
    for number, data in enumerate(files.values()):
        (directory / str(number)).write_bytes(data)
    child = subprocess.run(
        [sys.executable, "-I", "-c", AUDITED, str(directory)],
        input=msgspec.json.encode(spec),
        capture_output=True,
        check=True,
    )
    # A name that looks like an address is a name: the four files are adapters, and nobody follows it.
    assert child.stdout.decode().split() == [str(len(files) - 4), "[]"]
    assert not (tmp_path / "ran").exists()


def test_a_file_cut_and_restored_while_it_is_read_is_whole_or_refused(stored: Stored, valid: bytes) -> None:
    """A mapped file would end the process with SIGBUS here."""
    path, stop = stored(valid), threading.Event()

    def tamper() -> None:
        while not stop.is_set():
            os.truncate(path, 100)
            with path.open("r+b") as file:
                file.write(valid)

    tampering = threading.Thread(target=tamper)
    tampering.start()
    whole = refused = 0
    try:
        for _ in range(1_000):
            try:
                adapter = decode(disk.read_bytes(path))
            except InvalidAdapter:
                refused += 1
                continue
            # The holes of a file that is being written are zeros: another adapter, with another digest.
            whole += adapter.digest == decode(valid).digest
    finally:
        stop.set()
        tampering.join()
    assert refused
    assert decode(path.read_bytes()).digest == decode(valid).digest
