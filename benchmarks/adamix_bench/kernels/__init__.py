"""Measures the kernels of `adamix_kernels` by themselves: `adamix bench kernels`.

Needs torch, Triton, numpy, rich and typer, and nothing of the server: a machine with a GPU often has little else. Plots
need matplotlib, the whole encoder needs transformers; without them the rest is measured all the same.
"""
