"""`adamix.inspect`: what an adapter file says about itself."""

import os
from typing import Any

from adamix.files import adapter_file


def inspect(file: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest, the counts, the size and the digest of an adapter file: what `adamix inspect --json` prints.

    Raises:
        InvalidAdapter: the file is no merged adapter; the message says what it is.
        FileNotFoundError: as usual.
    """
    adapter = adapter_file.read(file)
    prompt = {"prompt": adapter.manifest.prompt_form} if adapter.manifest.head.type == "causal_lm" else {}
    count, head = adapter.num_parameters()
    return {
        **adapter.manifest.to_json(),
        **prompt,
        "parameters": {"adapter": count, "head": head},
        "bytes": adapter.num_bytes,
        "digest": adapter.digest,
    }
