"""Proof without a device: every kernel compiled for devices that are not here, and what each costs there.

    python -m adamix_kernels.aot --help

A kernel module offers `specimens(target)`: its kernels with the arguments they are launched with. Knows Triton only,
never torch, and loads Triton when something is compiled.
"""

from adamix_kernels.aot.resources import Resources, problems, resources
from adamix_kernels.gpu.specimen import TARGETS, Specimen, compile_specimen

__all__ = ["TARGETS", "Resources", "Specimen", "compile_specimen", "problems", "resources"]
