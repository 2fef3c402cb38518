"""One hostile file after another on a task that serves: each is refused by name, and the task does not notice."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from adamix.errors import AdamixError, Code
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.manifest import BackboneSpec
from adamix.files.tensors import TensorData
from adamix_testing.servers import Server

MakeAdapter = Callable[..., AdapterFile]
Header = dict[str, Any]

TEXTS = ["the cat sleeps", "a big red dog runs over the lazy bird", "fish"]
MUTATIONS = 25
NAME = "layers.0.mlp_out.up_proj.weight"


def with_header(data: bytes, edit: Callable[[Header], object]) -> bytes:
    """The file with another header over the same data."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    edit(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[end:]


def entry(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda data: with_header(data, lambda header: header[NAME].update(changes))


def manifest(**changes: Any) -> Callable[[bytes], bytes]:
    def edit(header: Header) -> None:
        found = json.loads(header["__metadata__"]["manifest"])
        header["__metadata__"]["manifest"] = json.dumps(found | changes)

    return lambda data: with_header(data, edit)


def shifted(header: Header) -> None:
    header[NAME]["data_offsets"] = [offset - 4 for offset in header[NAME]["data_offsets"]]


def without(data: bytes) -> bytes:
    adapter = adapter_file.decode(data)
    return adapter_file.encode(adapter.manifest, {k: v for k, v in adapter.tensors.items() if k != NAME})


def with_value(value: float) -> Callable[[bytes], bytes]:
    def build(data: bytes) -> bytes:
        adapter = adapter_file.decode(data)
        values = adapter.tensors[NAME].to_float32().copy()
        values.flat[7] = value
        return adapter_file.encode(adapter.manifest, adapter.tensors | {NAME: TensorData.from_float32(values)})

    return build


def empty_tensors(_: bytes) -> bytes:
    text = (
        "{" + ",".join(f'"{i:x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(18_000)) + "}"
    ).encode()
    return len(text).to_bytes(8, "little") + text


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "overlap": (lambda data: with_header(data, shifted), "LAYOUT_INVALID"),
    "trailing bytes": (lambda data: data + b"\0", "LAYOUT_INVALID"),
    "18,000 tensors of no size": (empty_tensors, "TOO_LARGE"),
    "a dimension of zero": (entry(shape=[0, 1 << 62]), "LAYOUT_INVALID"),
    "a product that overflows": (entry(shape=[1 << 28] * 4), "LAYOUT_INVALID"),
    "infinite": (with_value(float("inf")), "NON_FINITE"),
    "huge": (with_value(1e30), "NON_FINITE"),
    "another dtype": (entry(dtype="F64"), "DTYPE_INVALID"),
    "a tensor missing": (without, "TENSOR_MISSING"),
    "a path for a name": (
        lambda data: with_header(data, lambda h: h.update({"../x": h.pop(NAME)})),
        "TENSOR_UNEXPECTED",
    ),
    "a key twice": (
        lambda data: data[:8] + b'{"a":1,"a":2}'.ljust(int.from_bytes(data[:8], "little")) + data[8:],
        "HEADER_INVALID",
    ),
    "a deep manifest": (
        lambda data: with_header(data, lambda h: h["__metadata__"].update(manifest="[" * 100_000)),
        "HEADER_INVALID",
    ),
    "a million labels": (
        manifest(head={"type": "classification", "pooling": "mean", "num_labels": 10**6}),
        "MANIFEST_INVALID",
    ),
    "code in the manifest": (manifest(auto_map={"AutoModel": "own.Model"}), "MANIFEST_INVALID"),
}


def mutated(data: bytes, choose: random.Random) -> bytes:
    end = 8 + int.from_bytes(data[:8], "little")
    changed = bytearray(data)
    for _ in range(choose.randint(1, 3)):
        changed[choose.randrange(end)] ^= 1 << choose.randrange(8)
    return bytes(changed)


@pytest.mark.slow
def test_hostile_files_leave_the_live_version_as_it_was(
    server: Server, make_adapter: MakeAdapter, spec: BackboneSpec
) -> None:
    live, next_one = make_adapter(0, spec=spec), make_adapter(1, spec=spec)
    data = adapter_file.encode(next_one.manifest, next_one.tensors)
    choose = random.Random(0)
    files = {name: (build(data), reason) for name, (build, reason) in HOSTILE.items()}
    for number in range(MUTATIONS):
        files[f"mutation {number}"] = (mutated(data, choose), "")
    with server.client() as client:
        client.register("t", adapter_file.encode(live.manifest, live.tensors))
        before = [(p.version, p.logits) for p in client.predict(task="t", texts=TEXTS, return_logits=True).predictions]
        versions = len(client.versions("t"))
        for name, (hostile, reason) in files.items():
            try:
                # A mutation may, now and then, hit what does not matter; then it is a version, but not the live one.
                client.register("t", hostile, make_live=False)
            except AdamixError as error:
                assert error.code is Code.INVALID_ARGUMENT, name  # noqa: PT017 - most are refused, and one need not be
                assert reason in ("", error.reason), name  # noqa: PT017
                assert "/tmp" not in error.message, name  # noqa: PT017
            else:
                assert reason == "", name
                versions += 1
            answers = client.predict(task="t", texts=TEXTS, return_logits=True).predictions
            assert [(p.version, p.logits) for p in answers] == before, name
        assert len(client.versions("t")) == versions
        assert client.register("t", data).version.live
