"""What is measured: the adapter of a file or of a training directory, and its mixture where routes ask for that."""

from pathlib import Path

from adamix.errors import InvalidAdapter, InvalidConfig
from adamix.files import adapter_file
from adamix.files.adapter_file import AdapterFile
from adamix.files.mixture_file import MixtureFile
from adamix.merging.merge import merge, read_mixture
from adamix.routing.choice import Routing


def read_source(source: Path, routing: Routing) -> tuple[AdapterFile, MixtureFile | None]:
    """The merged adapter of a file or a training directory, and the mixture if the routing needs it.

    Raises:
        InvalidConfig: the routing needs several experts, and the file is merged; or an expert that is not there.
    """
    if not source.is_dir():
        try:
            adapter = adapter_file.read(source)
        except InvalidAdapter as error:
            if error.reason != "UNMERGED_MIXTURE":
                raise
        else:
            if routing.mode != "merged":
                raise InvalidConfig(
                    f"--routing {routing.mode} needs all experts, and {source.name} is merged into one: give the "
                    "directory that `adamix train` wrote, which keeps the mixture",
                    field="routing",
                )
            return adapter, None
    mixture = read_mixture(source)
    routing.check(mixture.manifest.num_experts)
    return adapter_file.decode(merge(mixture)), None if routing.mode == "merged" else mixture
