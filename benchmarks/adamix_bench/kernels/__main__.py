"""`python -m adamix_bench.kernels`: as `adamix bench kernels`, on machines that lack what the whole command imports."""

import typer

from adamix_bench.kernels.command import kernels

if __name__ == "__main__":
    typer.run(kernels)
