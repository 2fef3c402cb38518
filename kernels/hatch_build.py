"""Puts the native kernels into a wheel, compiled where it is built; without a compiler a wheel has their sources alone.

Run by hatchling, without the package's dependencies: it loads the one file that compiles and nothing else.
"""

import importlib.util
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_BUILD = Path("kernels/adamix_kernels/native/build.py")


class NativeKernels(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the shared library to a wheel, which then is one platform's."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile. An editable installation reads the sources' folder, where `make setup` compiles."""
        if version == "editable":
            return
        build = _load(Path(self.root) / _BUILD)
        try:
            library = build.build()
        except build.BuildError as error:
            self.app.display_warning(f"native kernels: not built: {error}")
            return
        build_data["force_include"][str(library)] = f"adamix_kernels/native/lib/{library.name}"
        build_data["pure_python"] = False
        # It is linked with no version of Python.
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
