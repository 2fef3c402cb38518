"""The Open Inference Protocol over HTTP: JSON, tensors in binary, and Triton's generate."""
