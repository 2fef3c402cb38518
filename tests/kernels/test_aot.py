"""The kernels as they are compiled for devices that are not here; in other processes, since this interprets them."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import adamix_kernels
from adamix_kernels.aot import TARGETS, Resources, Specimen, problems
from adamix_kernels.aot.loads import Load, block_loads
from adamix_kernels.aot.table import sources_digest
from adamix_kernels.plans import ARCHITECTURES, table

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "benchmarks" / "results" / "aot.json").read_text("utf-8"))


def compile_kernels(*arguments: str, package: Path | None = None) -> tuple[int, dict]:
    """Status and document of the command, with the kernels of another directory if one is given."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if package is not None:
        environment["PYTHONPATH"] = str(package)
    command = [sys.executable, "-m", "adamix_kernels.aot", "--json", *arguments]
    finished = subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True, check=False)
    return finished.returncode, json.loads(finished.stdout)


def faults(document: dict) -> dict[str, list[str]]:
    return {
        f"{row['kernel']}, {row['plan']}, {row['target']}": row["problems"]
        for row in document["aot"]
        if "problems" in row
    }


@pytest.fixture
def package(tmp_path):
    """A copy of the kernels to break."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(adamix_kernels.__file__).parent, tmp_path / "adamix_kernels", ignore=ignored)
    return tmp_path


def edit(package: Path, name: str, old: str, new: str) -> None:
    path = package / "adamix_kernels" / name
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")


def replan(package: Path, rule: str, **changes: object) -> None:
    """Give one rule of sm90 another plan."""
    path = package / "adamix_kernels" / "plans" / "sm90.json"
    document = json.loads(path.read_text("utf-8"))
    next(each for each in document["low_rank"] if each["name"] == rule)["plan"].update(changes)
    path.write_text(json.dumps(document), "utf-8")


class TestRecordedTable:
    def test_is_of_these_kernels_and_plans(self):
        assert RECORDED["sources"] == sources_digest(), "kernels or plans have changed; run: make aot"

    def test_is_of_the_pinned_triton(self):
        constraints = (ROOT / "constraints.txt").read_text("utf-8")
        pinned = re.search(r"^triton==(\S+)$", constraints, re.MULTILINE)
        assert RECORDED["triton"] == pinned.group(1), "another triton is pinned; run: make aot"

    def test_has_every_rule_of_every_target_and_no_faults(self):
        assert RECORDED["full"]
        assert faults(RECORDED) == {}
        plans = {(row["target"], row["plan"].split(",")[0]) for row in RECORDED["aot"]}
        for target in ARCHITECTURES:
            for rules in table(target).values():
                assert {(target, rule.name) for rule in rules} <= plans


@pytest.mark.slow
class TestCompiled:
    # Which kernels are as they were recorded, the digest of their sources says; that the record is true, is tried.
    @pytest.mark.parametrize("only", ["fused, in place, short", pytest.param("", marks=pytest.mark.long, id="all")])
    def test_each_kernel_compiles_for_each_target_as_recorded(self, only):
        status, document = compile_kernels("--only", only)
        assert faults(document) == {}
        assert status == 0
        assert {row["target"] for row in document["aot"]} == set(TARGETS)
        kernels = {row["kernel"] for row in document["aot"]}
        assert kernels == ({"fused, in place"} if only else {row["kernel"] for row in RECORDED["aot"]})
        if document["triton"] == RECORDED["triton"]:
            assert [row for row in document["aot"] if row not in RECORDED["aot"]] == []

    def test_kernels_that_lost_sight_of_the_alignment_are_reported(self, package):
        edit(package, "gpu/low_rank.py", "return tl.multiple_of(", "return (")
        edit(package, "gpu/low_rank.py", "* FIELDS + FIELD), 8)", "* FIELDS + FIELD))")
        status, document = compile_kernels(
            "--targets", "sm90", "gfx942", "--only", "fused, in place, short half", package=package
        )
        assert status == 1
        found = faults(document)
        assert len(found) == 2
        for problem in found.values():
            assert "of the bytes of rows and weights are fetched in wide pieces" in problem[0]

    @pytest.mark.parametrize(
        ("kernel", "rule", "changes", "expected"),
        [
            ("fused, in place", "short half", {"num_warps": 1}, "bytes of registers are spilled"),
            ("shrink", "split half", {"block_h": 256, "num_stages": 8}, "bytes of shared memory"),
        ],
    )
    def test_blocks_too_large_for_the_registers_or_the_shared_memory_are_reported(
        self, package, kernel, rule, changes, expected
    ):
        replan(package, rule, **changes)
        arguments = ("--targets", "sm90", "--only", f"{kernel}, {rule}, bf16, R=64")
        status, document = compile_kernels(*arguments, package=package)
        assert status == 1
        (found,) = faults(document).values()
        assert expected in found[0]

    def test_products_that_round_fp32_are_reported(self, package):
        edit(package, "gpu/low_rank.py", "input_precision=PRECISION", 'input_precision="tf32"')
        status, document = compile_kernels(
            "--targets", "sm80", "sm90", "--only", "fused, in place, single, fp32", package=package
        )
        assert status == 1
        for problem in faults(document).values():
            assert "multiplies by HMMA tf32 instead of FFMA" in problem

    def test_kernels_that_should_overlap_do_and_are_reported_where_they_do_not(self, package):
        replan(package, "split half", pdl=True)
        arguments = ("--targets", "sm90", "--only", "split half, bf16, R=64")
        assert compile_kernels(*arguments, package=package)[0] == 0
        edit(package, "gpu/low_rank.py", "tl.extra.cuda.gdc_wait()", "pass")
        status, document = compile_kernels(*arguments, package=package)
        assert status == 1
        assert [name.split(",")[0] for name in faults(document)] == ["expand"]

    def test_a_kernel_that_does_not_compile_is_a_fault_and_not_the_end(self, package):
        edit(package, "gpu/low_rank.py", "acc = activate(acc, code)", "acc = no_such_function(acc)")
        status, document = compile_kernels("--targets", "sm80", "--only", "short half, bf16, R=64", package=package)
        assert status == 1
        found = faults(document)
        assert [name.split(", short")[0] for name in found] == [
            "fused, in place",
            "fused, norm point",
            "fused, for training",
        ]
        assert all("does not compile" in each for problem in found.values() for each in problem)


FUNCTION = SimpleNamespace(
    params=[
        SimpleNamespace(name="x", is_constexpr=False, do_not_specialize=False),
        SimpleNamespace(name="size", is_constexpr=False, do_not_specialize=True),
        SimpleNamespace(name="count", is_constexpr=False, do_not_specialize=False),
        SimpleNamespace(name="BLOCK", is_constexpr=True, do_not_specialize=False),
        SimpleNamespace(name="PDL", is_constexpr=True, do_not_specialize=False),
    ]
)


def specimen(dtype: str = "bf16", **changes: object) -> Specimen:
    fields = {
        "types": {"x": f"*{dtype}", "size": "i32"},
        "constexprs": {"BLOCK": 16, "PDL": False, "count": None},
        "options": {"num_stages": 3},
    }
    return Specimen(kernel="k", function=FUNCTION, plan="p", **(fields | changes))


GOOD = Resources(
    registers=128,
    spill_bytes=0,
    shared_bytes=40 << 10,
    tensor_memory=0,
    mma="HMMA",
    wide_loads=1.0,
    copies_ahead=True,
    multiplies_in_loop=True,
    grid_dependencies=0,
)


class TestProblems:
    def test_a_good_kernel_has_none(self):
        assert problems(specimen(), GOOD, "sm90") == []
        assert problems(specimen("fp32"), replace(GOOD, mma="FFMA"), "sm90") == []
        assert problems(specimen(), replace(GOOD, mma="v_mfma", copies_ahead=False), "gfx942") == []

    @pytest.mark.parametrize(
        ("change", "target", "expected"),
        [
            ({"spill_bytes": 8}, "sm90", "8 bytes of registers are spilled"),
            ({"shared_bytes": (163 << 10) + 1}, "sm80", "bytes of shared memory"),
            ({"shared_bytes": (64 << 10) + 1, "mma": "v_mfma"}, "gfx942", "bytes of shared memory"),
            ({"tensor_memory": 513}, "sm100", "columns of tensor memory"),
            ({"mma": "HGMMA"}, "sm80", "multiplies by HGMMA instead of HMMA"),
            ({"mma": "FFMA"}, "sm90", "multiplies by FFMA instead of HMMA or HGMMA"),
            ({"mma": ""}, "sm90", "multiplies by nothing"),
            ({"wide_loads": 0.8}, "sm90", "only 80%"),
            ({"wide_loads": None}, "sm90", "no load of rows or weights is to be seen"),
            ({"copies_ahead": False}, "sm90", "nothing is copied ahead"),
        ],
    )
    def test_each_fault_is_named(self, change, target, expected):
        (problem,) = problems(specimen(), replace(GOOD, **change), target)
        assert expected in problem

    @pytest.mark.parametrize("target", ["sm80", "sm90", "sm100", "gfx942"])
    def test_fp32_is_rounded_only_where_that_was_asked_for(self, target):
        name = "v_mfma" if target == "gfx942" else "HMMA"
        rounded = replace(GOOD, mma=f"{name} tf32")
        assert len(problems(specimen("fp32"), rounded, target)) == 1

    def test_overlap_needs_a_device_that_has_it(self):
        asked = specimen(constexprs={"BLOCK": 16, "PDL": True, "count": None})
        overlapping = replace(GOOD, grid_dependencies=1)
        assert problems(asked, overlapping, "sm90") == []
        assert problems(asked, GOOD, "sm90") == ["does not overlap the kernel beside it"]
        assert problems(asked, overlapping, "sm80") == ["does not overlap the kernel beside it"]


class TestSpecimen:
    def test_every_argument_is_given_once(self):
        with pytest.raises(ValueError, match="PDL"):
            specimen(constexprs={"BLOCK": 16, "count": None})
        with pytest.raises(ValueError, match="other"):
            specimen(constexprs={"BLOCK": 16, "PDL": False, "count": None, "other": 1})
        with pytest.raises(ValueError, match="size"):
            specimen(constexprs={"BLOCK": 16, "PDL": False, "count": None, "size": None})

    def test_a_number_that_the_launch_would_specialise_on_is_refused(self):
        with pytest.raises(ValueError, match="count would be compiled anew"):
            specimen(types={"x": "*bf16", "size": "i32", "count": "i32"}, constexprs={"BLOCK": 16, "PDL": False})

    def test_an_argument_is_constant_only_where_the_kernel_says_so(self):
        with pytest.raises(ValueError, match="is BLOCK a constant"):
            specimen(types={"x": "*bf16", "size": "i32", "BLOCK": "i32"}, constexprs={"PDL": False, "count": None})


DIALECT = """
#loc1 = loc("low_rank.py":10:4)
#loc2 = loc("low_rank.py":20:8)
#loc3 = loc("low_rank.py":30:8)
module attributes {"ttg.num-warps" = 4 : i32, ttg.target = "cuda:90", "ttg.threads-per-warp" = 32 : i32} {
%w = tt.load %p, %m : tensor<64x64x!tt.ptr<bf16>, #blocked> loc(#loc5)
%c = ttg.async_copy_global_to_local %q, %s mask %m : tensor<16x32x!tt.ptr<bf16>, #b> -> <16x32xbf16> loc(#loc2)
%b = tt.load %q : tensor<64x!tt.ptr<bf16>, #blocked> loc(#loc3)
#loc4 = loc(callsite(#loc1 at #loc3))
#loc5 = loc("w"(#loc4))
"""


class TestBlockLoads:
    def test_instructions_count_on_the_lines_that_load_blocks(self):
        assembly = """
        .loc 1 10 4
        @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
        ld.global.b16 { %rs1 }, [ %rd2 + 0 ];
        .loc 1 30 8
        ld.global.b16 { %rs2 }, [ %rd3 + 0 ];
        """
        wide, narrow = block_loads(DIALECT, assembly)
        assert wide == Load(16, is_wide=True, is_copy=False)
        assert narrow == Load(2, is_wide=False, is_copy=False)

    def test_a_small_block_is_fetched_in_wide_pieces_when_each_thread_takes_its_part_at_once(self):
        assembly = """
        .loc 1 20 8
        cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x8, %r2;
        cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x4, %r2;
        """
        assert [(load.is_wide, load.is_copy) for load in block_loads(DIALECT, assembly)] == [
            (True, True),
            (False, True),
        ]

    def test_amd_instructions_are_known_by_their_names(self):
        assembly = """
        .loc 1 10 4
        global_load_dwordx4 v[0:3], v[4:5], off
        buffer_load_ushort v1, v2, s[0:3], 0 offen
        s_load_dwordx2 s[0:1], s[2:3], 0x0
        """
        assert [(load.num_bytes, load.is_wide) for load in block_loads(DIALECT, assembly)] == [(16, True), (2, False)]
