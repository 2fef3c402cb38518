"""The stock client of the Open Inference Protocol, in a process of its own.

Its protobuf messages have the names of ours, and one process can hold only one of each. Calls come on stdin as a JSON
list of [method, arguments]; what each gave goes to stdout: {"value": ...}, or {"error": ..., "status": ...}.
"""

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton


def infer(
    client: triton.InferenceServerClient,
    model: str,
    texts: list[str],
    *,
    pairs: list[str] | None = None,
    shape: list[int] | None = None,
    outputs: list[str] | None = None,
    class_count: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Outputs by name, beside "model_version", "id" and the "shapes"."""
    tensors = []
    for name, values in (("text", texts), ("text_pair", pairs)):
        if values is not None:
            tensor = triton.InferInput(name, shape or [len(values)], "BYTES")
            tensor.set_data_from_numpy(np.array([v.encode() for v in values], dtype=np.object_).reshape(tensor.shape()))
            tensors.append(tensor)
    requested = None if outputs is None else [triton.InferRequestedOutput(name, class_count) for name in outputs]
    result = client.infer(model, tensors, outputs=requested, **options)
    response = result.get_response()
    found: dict[str, Any] = {"model_version": response.model_version, "id": response.id, "shapes": {}}
    for output in response.outputs:
        array = result.as_numpy(output.name)
        found["shapes"][output.name] = list(output.shape)
        assert list(array.shape) == list(output.shape)
        is_text = output.datatype == "BYTES"
        found[output.name] = np.char.decode(array.astype(np.bytes_)).tolist() if is_text else array.tolist()
    return found


def main(address: str) -> None:
    client = triton.InferenceServerClient(address)
    results: list[dict[str, Any]] = []
    for method, arguments in json.load(sys.stdin):
        try:
            if method == "infer":
                value = infer(client, **arguments)
            elif method.endswith("metadata"):
                value = getattr(client, f"get_{method}")(**arguments, as_json=True)
            else:
                value = getattr(client, f"is_{method}")(**arguments)
            results.append({"value": value})
        except triton.InferenceServerException as error:
            results.append({"error": error.message(), "status": error.status()})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
