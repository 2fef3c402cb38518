"""Ten thousand damaged adapter files: each is refused for a named reason or is a whole adapter, and soon."""

import copy
import json
import random
import time
from collections import Counter
from typing import Any

import msgspec

from adamix.errors import InvalidAdapter
from adamix.files.adapter_file import decode, encode
from adamix.files.manifest import BackboneSpec
from adamix.files.tensors import canonical_json
from adamix_server.frontend.control.validation import judge

MUTATIONS = 10_000
# The promise for one file is 0.1 s; a machine that does other things may stop a process for longer than that.
LONGEST_S = 1.0
NUMBERS = [b"0", b"-1", b"4294967296", b"9223372036854775808", b"1e400", b"1.5", b"NaN", b"null", b'""', b"[]"]


def mutated(good: bytes, choose: random.Random) -> bytes:
    """One to four changes: bytes flipped, lost, doubled, inserted or swapped, other numbers, other lengths."""
    data = bytearray(good)
    for _ in range(choose.randint(1, 4)):
        size = len(data)
        # Most changes in the header, where the structure is.
        where = choose.randrange(min(size, 1400) if choose.random() < 0.8 else size) if size else 0
        length = choose.choice([1, 2, 8, 64])
        match choose.randrange(8):
            case 0 if size:
                data[where] ^= 1 << choose.randrange(8)
            case 1:
                del data[where : where + length]
            case 2:
                data[where:where] = data[where : where + length]
            case 3:
                data[where:where] = choose.randbytes(length)
            case 4:
                digits = [i for i in range(8, min(size, 1400)) if 48 <= data[i] <= 57]
                if digits:
                    at = choose.choice(digits)
                    data[at : at + 1] = choose.choice(NUMBERS)
            case 5:
                other = choose.randrange(size) if size else 0
                piece, far = bytes(data[where : where + length]), bytes(data[other : other + length])
                data[where : where + length], data[other : other + length] = far, piece
            case 6:
                data[:8] = choose.choice([0, 8, 1 << 20, 1 << 63, size, max(size - 8, 0)]).to_bytes(8, "little")
            case _:
                del data[where:]
    return bytes(data)


def reseated(good: bytes, choose: random.Random) -> bytes:
    """A change inside of the header with the header's length put right, so that it gets as far as the JSON."""
    end = 8 + int.from_bytes(good[:8], "little")
    header = mutated(good[8:end], choose)
    return len(header).to_bytes(8, "little") + header + good[end:]


VALUES: list[Any] = [0, 1, -1, 2, 4, 8, 16, 1 << 40, 1.5, "", "F32", "F16", "mean", "cls", "lora", "0" * 64, True, None]
VALUES += [[], [8], [8, 4], [4, 8], [0, 128], {}, {"a": 1}]


def rewritten(good: bytes, choose: random.Random) -> bytes:
    """One to three values of the header, or of the manifest in it, replaced, removed or moved; the JSON stays whole."""
    end = 8 + int.from_bytes(good[:8], "little")
    header = json.loads(good[8:end])
    manifest = json.loads(header["__metadata__"]["manifest"])
    for _ in range(choose.randint(1, 3)):
        place: Any = choose.choice([manifest, header])
        while True:
            key = choose.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or choose.random() < 0.2:
                break
            place = place[key]
        match choose.randrange(4):
            case 0:
                del place[key]
            case 1 if isinstance(place, dict):
                place[choose.choice(["extra", "layers.0.mlp_out.up_proj.bias", "head.dense.bias"])] = place.pop(key)
            case _:
                place[key] = copy.deepcopy(choose.choice(VALUES))
        if not manifest or not header:
            break
    if isinstance(header.get("__metadata__"), dict) and choose.random() < 0.9:
        header["__metadata__"]["manifest"] = json.dumps(manifest)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + good[end:]


WAYS = (mutated, reseated, rewritten, rewritten)


def test_ten_thousand_mutations(spec: BackboneSpec, valid: bytes) -> None:
    choose = random.Random(0)
    refused: Counter[str] = Counter()
    accepted, worst_s = 0, 0.0
    for number in range(MUTATIONS):
        data = WAYS[number % len(WAYS)](valid, choose)
        began = time.perf_counter()
        try:
            verdict = judge(data, spec)
        except InvalidAdapter as error:
            refused[error.reason] += 1
        else:
            accepted += 1
            # What passes is an adapter in full: written again, it says the same.
            adapter = decode(data)
            assert verdict.manifest_json == canonical_json(adapter.manifest.to_json())
            again = decode(encode(adapter.manifest, adapter.tensors))
            assert encode(again.manifest, again.tensors) == encode(adapter.manifest, adapter.tensors)
            assert msgspec.structs.asdict(again.manifest) == msgspec.structs.asdict(adapter.manifest)
        worst_s = max(worst_s, time.perf_counter() - began)
    print(f"{accepted} accepted, refused {dict(refused)}, worst {worst_s * 1000:.1f} ms")
    assert accepted > 100
    assert sum(refused.values()) > MUTATIONS / 2
    assert len(refused) >= 12, "the mutations reach many checks"
    assert worst_s < LONGEST_S
