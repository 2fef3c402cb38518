"""The native kernels' library: how it is built and found, what is refused, and whose threads it uses."""

import importlib.util
import logging
import shutil
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from adamix.files.adapter_file import MAX_ADAPTER_RANK
from adamix_kernels import native
from adamix_kernels.native import build
from adamix_kernels.native.build import BuildError
from adamix_kernels.native.library import VARIANTS
from adamix_kernels.rowwise import rms_norm, silu_mul
from adamix_kernels.testing import assert_close


def copy_sources(to, monkeypatch):
    folder = to / "sources"
    shutil.copytree(build.SOURCE_FOLDER, folder, ignore=shutil.ignore_patterns("lib", "*.py", "__pycache__"))
    monkeypatch.setattr(build, "SOURCE_FOLDER", folder)
    monkeypatch.setattr(build, "FLAGS", tuple("-O0" if flag == "-O3" else flag for flag in build.FLAGS))
    monkeypatch.setattr(build, "VARIANTS", {build.PLAIN: ()})
    return folder


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the sources, quick to compile, and two folders of its own to find a library in."""
    folder = copy_sources(tmp_path, monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ADAMIX_NATIVE", raising=False)
    native.load.cache_clear()
    yield folder
    native.load.cache_clear()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The library of such sources, compiled once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        copy_sources(tmp_path_factory.mktemp("compiled"), monkeypatch)
        try:
            return build.build()
        except BuildError as error:
            pytest.skip(str(error))


@pytest.fixture
def built(sources, compiled):
    (sources / "lib").mkdir()
    return shutil.copy2(compiled, sources / "lib" / compiled.name)


@pytest.fixture
def compiles_at_once(compiled, monkeypatch):
    """The compiler gives what it gave before."""
    data = compiled.read_bytes()
    monkeypatch.setattr(build, "_compile", lambda *_: data)


def assert_it_works(found):
    x = torch.randn(3, 5)
    assert_close(found.silu_mul(x, x), torch.nn.functional.silu(x.double()) * x)


def test_what_is_built_is_found_and_built_once(built, sources):
    assert built.parent == sources / "lib"
    before = built.stat().st_mtime_ns
    assert build.find() == built == build.build()
    assert built.stat().st_mtime_ns == before
    assert [path.name for path in built.parent.iterdir()] == [built.name]
    found = native.load()
    assert found.path == built
    assert found.variant == build.PLAIN
    assert not found.use_kernels("avx512")
    assert not found.use_kernels("sse9")
    assert_it_works(found)


def test_a_library_of_other_sources_is_never_loaded(built, sources, compiles_at_once):
    header = sources / "rows.h"
    header.write_text(header.read_text() + "// changed\n")
    assert build.find() is None
    assert native.load() is None
    again = build.build()
    assert again != built
    assert not built.exists()


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: data[:5000] + b"damage" + data[5006:], lambda _: b""]
)
def test_a_corrupt_library_is_refused_once_in_the_log_and_built_anew(damage, built, compiles_at_once, caplog):
    data = built.read_bytes()
    built.write_bytes(damage(data))
    with caplog.at_level(logging.WARNING):
        assert native.load() is None
        assert native.load() is None
    (said,) = [record.getMessage() for record in caplog.records]
    assert str(built) in said
    assert "is not what was built: run python -m adamix_kernels.native.build" in said
    assert build.build().read_bytes() == data


def test_what_is_no_library_is_refused(built, caplog):
    data = b"not a library"
    built.with_name(built.name.replace(built.stem.rpartition("-")[2], build._digest(data))).write_bytes(data)
    built.unlink()
    assert native.load() is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("no native kernels: ")


def test_nothing_is_compiled_unless_asked_for(sources, monkeypatch, caplog):
    with caplog.at_level(logging.INFO):
        assert native.load() is None
    assert "python -m adamix_kernels.native.build makes them" in caplog.text
    assert not (sources / "lib").exists()
    if shutil.which("cc") is None:
        pytest.skip("no C compiler (cc) is installed")
    monkeypatch.setenv("ADAMIX_NATIVE", "build")
    native.load.cache_clear()
    assert_it_works(native.load())


def test_turned_off_it_is_not_even_looked_for(built, monkeypatch, caplog):
    monkeypatch.setenv("ADAMIX_NATIVE", "0")
    monkeypatch.setattr(build, "find", None)
    assert native.load() is None
    assert not caplog.records


def test_where_the_package_cannot_be_written_the_cache_takes_it(sources, compiles_at_once, tmp_path):
    (sources / "lib").write_text("in the way")
    path = build.build()
    assert path.parent == tmp_path / "cache" / "adamix" / "native"
    (tmp_path / "cache" / "adamix" / "native").rename(tmp_path / "elsewhere")
    (tmp_path / "cache" / "adamix" / "native").write_text("in the way")
    with pytest.raises(BuildError, match=r"^no folder for the native kernels: .*lib: .*; .*native: .*$"):
        build.build()


def test_a_library_that_cannot_be_read_is_refused(built, caplog):
    built.unlink()
    built.mkdir()
    assert native.load() is None
    assert f"{built}: Is a directory" in caplog.text


@pytest.mark.parametrize("cache", ["relative/cache", None])
def test_a_cache_that_is_nowhere_is_not_used(cache, sources, monkeypatch):
    if cache is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", homeless)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert build.folders() == (sources / "lib",)
    assert native.load() is None


def homeless():
    raise RuntimeError("Could not determine home directory.")


def test_without_a_compiler_one_line_says_so(sources, monkeypatch, capsys):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(sources))
    assert build.main() == 1
    assert capsys.readouterr().err == ("native kernels: not built: no C compiler (cc, gcc, clang) is installed\n")


def test_a_compiler_that_fails_is_named_with_what_it_says(sources, monkeypatch, tmp_path):
    compiler = tmp_path / "some-cc"
    compiler.write_text("#!/bin/sh\necho 'first line' >&2\necho second >&2\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.raises(BuildError, match=rf"^{compiler} failed: first line$"):
        build.build()
    assert not (sources / "lib").exists()


def test_instructions_that_the_compiler_does_not_know_are_left_out(sources, monkeypatch):
    monkeypatch.setattr(build, "VARIANTS", {build.PLAIN: (), "avx512": ("-mno-such-instructions",)})
    try:
        build.build()
    except BuildError as error:
        pytest.skip(str(error))
    assert native.load().variant == build.PLAIN


def test_the_best_kernels_of_this_processor_are_taken(library):
    assert library.variant == next(name for name in VARIANTS if library.use_kernels(name))


def test_every_adapter_that_may_be_registered_fits():
    assert native.LARGEST_RANK >= MAX_ADAPTER_RANK


def test_the_constants_are_those_of_the_sources():
    header = (build.SOURCE_FOLDER / "kernels.h").read_text()
    for name in ("MOST_QUERIES", "MOST_ROWS", "LARGEST_RANK"):
        assert f"#define {name} {getattr(native, name)}" in header


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted by Linux")
def test_the_threads_are_torchs_own(library):
    assert library.has_threads
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        x = torch.randn(512, 1024)
        torch.exp(x)
        threads = sum(1 for _ in Path("/proc/self/task").iterdir())
        library.silu_mul(x, x)
        torch.exp(x)
        assert sum(1 for _ in Path("/proc/self/task").iterdir()) == threads
    finally:
        torch.set_num_threads(before)


def test_without_torchs_runtime_one_thread_computes(library, monkeypatch):
    monkeypatch.setattr("adamix_kernels.native.library._TORCH_LIBRARY", "no-such-library.so")
    alone = native.Library(library.path)
    try:
        assert not alone.has_threads
        assert_it_works(alone)
    finally:
        # Both are one library to the process.
        monkeypatch.undo()
        assert native.Library(library.path).has_threads


@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (2, 3, 37), (700, 576), (0, 8)])
class TestRowwise:
    def test_rms_norm(self, shape, library):
        torch.manual_seed(0)
        x, weight = torch.randn(shape) * 3, torch.randn(shape[-1])
        expected = torch.nn.functional.rms_norm(x.double(), weight.shape, weight.double(), 1e-5)
        assert_close(rms_norm(x, weight, 1e-5), expected)

    def test_silu_mul(self, shape, library):
        torch.manual_seed(0)
        both = torch.randn(*shape[:-1], 2 * shape[-1]) * 5
        gate, up = both.chunk(2, dim=-1)
        assert_close(silu_mul(gate, up), torch.nn.functional.silu(gate.double()) * up)


def test_a_row_of_a_norm_or_a_gate_has_the_same_bits_in_any_company(library):
    torch.manual_seed(0)
    x, weight = torch.randn(700, 100), torch.randn(100)
    normed, gated = rms_norm(x, weight, 1e-5), silu_mul(x, x)
    for row in (0, 1, 350, 699):
        assert torch.equal(rms_norm(x[row], weight, 1e-5), normed[row])
        assert torch.equal(silu_mul(x[row], x[row]), gated[row])


def test_large_gates_saturate_and_what_is_not_finite_shows(library):
    gate = torch.tensor([-1e4, -100.0, -88.0, 0.0, 88.0, 1e4, torch.inf, torch.nan])
    assert_close(silu_mul(gate, torch.ones(8))[:6], torch.nn.functional.silu(gate[:6].double()))
    assert torch.equal(torch.isnan(silu_mul(gate, torch.ones(8))), torch.isnan(gate))
    x = torch.tensor([[1.0, 2.0], [1.0, torch.nan], [torch.inf, 1.0]])
    assert torch.isfinite(rms_norm(x, torch.ones(2), 1e-5)).all(dim=1).tolist() == [True, False, False]


@pytest.mark.parametrize("change", [lambda x: x.double(), lambda x: x.bfloat16()])
def test_other_dtypes_take_torchs_forms(change):
    x, weight = change(torch.randn(3, 8)), change(torch.randn(8))
    assert torch.equal(rms_norm(x, weight, 1e-5), torch.nn.functional.rms_norm(x, (8,), weight, 1e-5))
    assert torch.equal(silu_mul(x, x), torch.nn.functional.silu(x) * x)


def test_a_wheel_brings_the_library_if_it_can_be_built_and_the_sources_always(monkeypatch, tmp_path):
    root = Path(__file__).parents[2]
    targets = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    hook = targets["hooks"]["custom"]["path"]
    assert "kernels/adamix_kernels" in targets["packages"]
    for package in ("hatchling", "hatchling.builders", "hatchling.builders.hooks", "hatchling.builders.hooks.plugin"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    interface = ModuleType("hatchling.builders.hooks.plugin.interface")
    interface.BuildHookInterface = object
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    spec = importlib.util.spec_from_file_location("hatch_build", root / hook)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    of_build = loaded._load(root / "kernels" / "adamix_kernels" / "native" / "build.py")
    monkeypatch.setattr(loaded, "_load", {root / "kernels/adamix_kernels/native/build.py": of_build}.__getitem__)
    warnings = []
    kernels = loaded.NativeKernels()
    kernels.root, kernels.app = str(root), SimpleNamespace(display_warning=warnings.append)

    def built_with(version, build_function):
        monkeypatch.setattr(of_build, "build", build_function)
        build_data = {"force_include": {}}
        kernels.initialize(version, build_data)
        return build_data

    def no_compiler():
        raise of_build.BuildError("no C compiler")

    with_library = built_with("standard", lambda: tmp_path / "some.so")
    assert with_library["force_include"] == {str(tmp_path / "some.so"): "adamix_kernels/native/lib/some.so"}
    assert with_library["tag"].startswith("py3-none-")
    assert not with_library["pure_python"]
    assert not warnings
    assert built_with("editable", no_compiler) == {"force_include": {}}
    assert built_with("standard", no_compiler) == {"force_include": {}}
    assert warnings == ["native kernels: not built: no C compiler"]
