"""The stock client of the Open Inference Protocol over HTTP, in a process of its own, which gevent makes its own.

Calls come on stdin as a JSON list of [method, arguments]; what each gave goes to stdout: {"value": ...}, or {"error":
..., "status": ...}. It is `stock_client.py` with the other transport.
"""

import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton


def infer(
    client: Any,
    model: str,
    texts: list[str],
    *,
    pairs: list[str] | None = None,
    shape: list[int] | None = None,
    outputs: list[str] | None = None,
    binary: bool = True,
    class_count: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Outputs by name, beside "model_version", "id" and the "shapes"."""
    tensors = []
    for name, values in (("text", texts), ("text_pair", pairs)):
        if values is not None:
            tensor = triton.InferInput(name, shape or [len(values)], "BYTES")
            array = np.array([v.encode() for v in values], dtype=np.object_).reshape(tensor.shape())
            tensor.set_data_from_numpy(array, binary_data=binary)
            tensors.append(tensor)
    requested = None
    if outputs is not None:
        requested = [triton.InferRequestedOutput(name, binary_data=binary, class_count=class_count) for name in outputs]
    result = client.infer(model, tensors, outputs=requested, **options)
    response = result.get_response()
    found: dict[str, Any] = {"model_version": response["model_version"], "id": response.get("id", ""), "shapes": {}}
    for output in response["outputs"]:
        array = result.as_numpy(output["name"])
        found["shapes"][output["name"]] = list(array.shape)
        is_text = output["datatype"] == "BYTES"
        found[output["name"]] = [_text(value) for value in array.ravel()] if is_text else array.tolist()
    return found


def _text(value: bytes | str) -> str:
    """In binary they are bytes, in JSON they are text."""
    return value.decode() if isinstance(value, bytes) else value


def main(address: str) -> None:
    client = triton.InferenceServerClient(address)
    results: list[dict[str, Any]] = []
    for method, arguments in json.load(sys.stdin):
        try:
            if method == "infer":
                value = infer(client, **arguments)
            elif method.endswith("metadata"):
                value = getattr(client, f"get_{method}")(**arguments)
            else:
                value = getattr(client, f"is_{method}")(**arguments)
            results.append({"value": value})
        except triton.InferenceServerException as error:
            results.append({"error": error.message(), "status": error.status()})
    client.close()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
