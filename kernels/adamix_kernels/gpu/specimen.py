"""One kernel with the arguments it is launched with, and its compilation for a device that need not be here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Target:
    """A kind of device as Triton calls it, the shared memory (on AMD LDS) that one program can have there, and whether
    a kernel can begin before the one ahead of it has ended (programmatic dependent launch).

    Sources: the table of technical specifications in the CUDA programming guide; the ISA guide of AMD's CDNA 3.
    """

    backend: str
    arch: int | str
    warp_size: int
    shared_bytes: int
    overlaps_kernels: bool


TARGETS = {
    "sm80": Target("cuda", 80, 32, 163 << 10, overlaps_kernels=False),
    "sm90": Target("cuda", 90, 32, 227 << 10, overlaps_kernels=True),
    "sm100": Target("cuda", 100, 32, 227 << 10, overlaps_kernels=True),
    "gfx942": Target("hip", "gfx942", 64, 64 << 10, overlaps_kernels=False),
}


@dataclass(frozen=True)
class Specimen:
    """A kernel as one plan launches it.

    Attributes:
        kernel: its name in the table; variants have names of their own, as `fused, norm point`.
        function: the `@triton.jit` function.
        types: of every argument that is not a constant, "*bf16", "*fp32", "*i64", "i32" and so on. Pointers are taken
            to be aligned to 16 bytes, which the launchers guarantee; integers must be exempt from specialisation.
        constexprs: values of the other arguments.
        plan: which entry of the plans this is, and for which sizes.
        options: `num_warps`, `num_stages`, `launch_pdl`, as the launcher gives them.
    """

    kernel: str
    function: Any
    types: Mapping[str, str]
    constexprs: Mapping[str, Any]
    plan: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = {parameter.name for parameter in self.function.params}
        wrong = names ^ (self.types.keys() | self.constexprs.keys()) | (self.types.keys() & self.constexprs.keys())
        if wrong:
            raise ValueError(f"{self.kernel}: each argument must be given once; not so: {', '.join(sorted(wrong))}")
        for parameter in self.function.params:
            is_constant, exempt = parameter.name in self.constexprs, parameter.do_not_specialize
            if parameter.is_constexpr != is_constant and self.constexprs.get(parameter.name, 0) is not None:
                raise ValueError(f"{self.kernel}: is {parameter.name} a constant or not?")
            if not is_constant and not exempt and not self.types[parameter.name].startswith("*"):
                raise ValueError(f"{self.kernel}: {parameter.name} would be compiled anew for some of its values")

    @property
    def has_half_operands(self) -> bool:
        """Whether rows and weights are bf16 or fp16."""
        return any(kind in ("*bf16", "*fp16") for kind in self.types.values())

    @property
    def precision(self) -> str:
        """Of products of fp32 numbers: "ieee" or "tf32"."""
        return str(self.constexprs.get("PRECISION", "ieee"))

    @property
    def overlaps_neighbour(self) -> bool:
        """Whether it starts before the kernel ahead has ended, or lets the next one do so (PDL)."""
        return bool(self.constexprs.get("PDL", False))


def compile_specimen(specimen: Specimen, target: str) -> Any:
    """Triton's compiled kernel, of which there is nothing but the text and the binary: no driver is asked.

    The attributes of the arguments are those a launch would find: without them no load is wider than one element.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [parameter.name for parameter in specimen.function.params]
    signature = {name: specimen.types.get(name, "constexpr") for name in names}
    source = ASTSource(
        fn=specimen.function,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in specimen.constexprs.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")},
    )
    device = TARGETS[target]
    # That products and sums are contracted is Triton's default up to 3.9 only, and what a kernel takes depends on it.
    options = {"enable_fp_fusion": True, **specimen.options}
    return triton.compile(source, target=GPUTarget(device.backend, device.arch, device.warp_size), options=options)
