"""What a call needs of a manifest, and one head, and one template, for all versions that have equal ones.

Thousands of tasks answer with the same few heads, and a head with many labels is larger than all else that is kept of
a version. Heads are told apart by their JSON, which is canonical in every manifest that was validated.
"""

import hashlib
from weakref import WeakValueDictionary

import msgspec

from adamix.errors import InvalidAdapter
from adamix.files.manifest import HeadSpec, Manifest, PromptForm
from adamix_server.catalog.rows import Writing

# By the sha256 of their JSON, as long as a row has them.
_heads: WeakValueDictionary[bytes, HeadSpec] = WeakValueDictionary()
_writings: WeakValueDictionary[tuple[PromptForm, bytes], Writing] = WeakValueDictionary()


class _Served(msgspec.Struct):
    """Of a manifest, what answering needs. The rest is skipped, not parsed."""

    head: msgspec.Raw
    max_length: int
    prompt: PromptForm | None = None
    chat_template: str | None = None


_served = msgspec.json.Decoder(_Served)
_head = msgspec.json.Decoder(HeadSpec)


Served = tuple[HeadSpec, int, Writing | None]


def read_served(manifest_json: str) -> Served:
    """(head, max_length in tokens, how it is asked for text) of a manifest that was checked when it was stored.

    Raises:
        msgspec.MsgspecError: it is of another adamix, whose heads this one does not know.
    """
    served = _served.decode(manifest_json)
    key = hashlib.sha256(served.head).digest()
    if (head := _heads.get(key)) is None:
        # Two threads that meet here may each keep one of their own, which costs no more than the memory of a head.
        head = _heads.setdefault(key, _head.decode(served.head))
    return head, served.max_length, _writing(served) if head.type == "causal_lm" else None


def _writing(served: _Served) -> Writing:
    form, template = served.prompt or Manifest.DEFAULT_PROMPT_FORM, served.chat_template
    key = form, b"" if template is None else hashlib.sha256(template.encode()).digest()
    if (writing := _writings.get(key)) is None:
        writing = _writings.setdefault(key, Writing(form, template))
    return writing


def check_manifest(manifest_json: str, backbone_fingerprint: str) -> None:
    """Raise InvalidAdapter (`MANIFEST_INVALID`) unless it is a manifest, of an adapter for that backbone."""
    try:
        manifest = Manifest.from_json(msgspec.json.decode(manifest_json))
    except msgspec.DecodeError:
        raise InvalidAdapter("the manifest is not JSON", reason="MANIFEST_INVALID") from None
    if manifest.backbone.fingerprint != backbone_fingerprint:
        raise InvalidAdapter("the manifest names another backbone", reason="MANIFEST_INVALID")
