"""What a benchmark of the kernels is asked to do: one frozen value per run, checked when it is made. No torch here."""

from dataclasses import dataclass

from adamix.errors import InvalidConfig
from adamix_bench.kernels.cells import QUICK, Cell, Filter, grid

DTYPE_NAMES = ("fp32", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of `adamix bench kernels`.

    Attributes:
        dtypes: of rows and weights; empty takes bf16 on CUDA and fp32 on a CPU.
        cells: which sizes, see `Filter`; empty takes all.
        quick: a few small cells, to see that everything runs.
        budget_s: nothing new is begun after so many seconds; None for no bound.
    """

    dtypes: tuple[str, ...] = ()
    cells: str = ""
    quick: bool = False
    budget_s: float | None = None

    def __post_init__(self) -> None:
        for dtype in self.dtypes:
            if dtype not in DTYPE_NAMES:
                raise InvalidConfig(f"dtype must be one of {', '.join(DTYPE_NAMES)}, not {dtype!r}", field="dtype")
        if self.budget_s is not None and not 0 < self.budget_s <= 86_400:
            raise InvalidConfig(f"budget must be in 0..86400 seconds, not {self.budget_s}", field="budget")
        if not self.chosen():
            raise InvalidConfig(f"no cell has {self.cells!r}", field="cells")

    def chosen(self) -> list[Cell]:
        """The cells, most important first."""
        return Filter.parse(self.cells).of(QUICK if self.quick else grid())

    @property
    def has_all_cells(self) -> bool:
        return not self.cells and not self.quick
