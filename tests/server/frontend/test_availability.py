"""What a front end knows against its versions, without an engine."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from adamix.errors import AdamixError, Code, DataLoss, InternalError, InvalidRequest, Overloaded, Unavailable
from adamix.files.adapter_file import decode
from adamix.files.manifest import BackboneSpec, HeadSpec
from adamix_server.blobs.packed_size import packed_bytes
from adamix_server.catalog.rows import Snapshot, TaskRow
from adamix_server.catalog.store import Catalog
from adamix_server.frontend import availability
from adamix_server.frontend.availability import Availability
from adamix_server.limits.adapters import MAX_REMEMBERED_FAILURES
from adamix_testing.adapters import MakeAdapter
from adamix_testing.catalogs import Seed

ME = "default"
NOTHING = Snapshot(revision=-1, tasks={})
MISSING = DataLoss("gone", reason="BLOB_MISSING")
DAMAGED = DataLoss("damaged")

Open = Callable[..., tuple[Catalog, Availability]]


@pytest.fixture
def open_store(store: Path, spec: BackboneSpec, request: pytest.FixtureRequest) -> Open:
    """A catalog, and what is known against it when a front end starts on it."""

    def open_it(arena_bytes: int = 1 << 30, dtype: str = "float32") -> tuple[Catalog, Availability]:
        catalog = Catalog(store, backbone_fingerprint=spec.fingerprint)
        request.addfinalizer(catalog.close)
        known = Availability(catalog.blobs, arena_bytes, dtype)
        known.learn(catalog.snapshot(), NOTHING)
        known.learn_missing(catalog.snapshot())
        return catalog, known

    return open_it


def reason(catalog: Catalog, known: Availability, task: str = "t") -> str:
    return known.reason_of_task(catalog.get_task(ME, task))


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_a_version_fits_an_arena_of_exactly_its_size_and_no_smaller_one(
    seed: Seed, make_adapter: MakeAdapter, open_store: Open, dtype: str, itemsize: int
) -> None:
    data = make_adapter()
    seed("t", data)
    sizes = [tensor.array.size for tensor in decode(data).tensors.values()]
    needed = packed_bytes(sizes, itemsize)
    catalog, fits = open_store(needed, dtype)
    assert reason(catalog, fits) == ""
    fits.check(catalog.get_task(ME, "t").live[0])
    fits.check_sizes(sizes)
    catalog, too_small = open_store(needed - 1, dtype)
    assert reason(catalog, too_small) == "ADAPTER_TOO_LARGE_FOR_SERVER"
    for check in (lambda: too_small.check(catalog.get_task(ME, "t").live[0]), lambda: too_small.check_sizes(sizes)):
        with pytest.raises(AdamixError, match="--arena-mib 1 or more") as caught:
            check()
        assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "ADAPTER_TOO_LARGE_FOR_SERVER")


def test_a_version_that_comes_later_is_looked_at_too(seed: Seed, make_adapter: MakeAdapter, open_store: Open) -> None:
    catalog, known = open_store(arena_bytes=256)
    before = catalog.snapshot()
    seed("t", make_adapter())
    known.learn(catalog.snapshot(), before)
    assert reason(catalog, known) == "ADAPTER_TOO_LARGE_FOR_SERVER"


def test_files_that_are_small_enough_are_not_opened(
    seed: Seed, make_adapter: MakeAdapter, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """50,000 adapters are looked at when a front end starts."""
    seed("t", make_adapter())
    monkeypatch.setattr(availability, "read_sizes", pytest.fail)
    catalog, known = open_store()
    assert reason(catalog, known) == ""


def test_what_is_gone_or_cut_short_at_the_start_is_known_until_it_is_put_anew(
    seed: Seed, make_adapter: MakeAdapter, open_store: Open
) -> None:
    data = {task: make_adapter(seed=number) for number, task in enumerate(("good", "gone", "short"))}
    digests = {task: seed(task, file) for task, file in data.items()}
    catalog, _ = open_store()
    catalog.blobs.path(digests["gone"]).unlink()
    short = catalog.blobs.path(digests["short"])
    short.unlink()
    short.write_bytes(data["short"][:-1])
    _, known = open_store()

    def reasons() -> list[str]:
        return [reason(catalog, known, task) for task in data]

    for _ in range(2):
        assert reasons() == ["", "BLOB_MISSING", "BLOB_CORRUPT"]
        known.look_again()
    catalog.blobs.put(data["gone"], digests["gone"])
    assert reasons()[1] == "BLOB_MISSING", "another front end may have put it"
    known.look_again()
    assert reasons() == ["", "", "BLOB_CORRUPT"]
    catalog.blobs.put(data["short"], digests["short"])
    known.look_again()
    assert reasons() == ["", "", ""]
    assert known.is_clean


def test_a_damaged_file_that_is_then_gone_is_missing(seed: Seed, make_adapter: MakeAdapter, open_store: Open) -> None:
    digest = seed("t", make_adapter())
    catalog, known = open_store()
    known.failed(digest, DAMAGED)
    known.look_again()
    assert reason(catalog, known) == "BLOB_CORRUPT"
    catalog.blobs.path(digest).unlink()
    known.look_again()
    assert reason(catalog, known) == "BLOB_MISSING"


def test_what_the_engine_says_of_the_bytes_is_remembered_until_it_has_loaded_them(
    seed: Seed, make_adapter: MakeAdapter, open_store: Open
) -> None:
    digest = seed("t", make_adapter())
    catalog, known = open_store()
    of_others = (
        Unavailable("lost", reason="STORE_LOST"),
        Overloaded("full"),
        InternalError("a bug"),
        InvalidRequest("the text is too long", field="inputs[0].text"),
    )
    for error in of_others:
        known.failed(digest, error)
        assert reason(catalog, known) == ""
    unfit = AdamixError("not finite", reason="NON_FINITE")
    unfit.code = Code.INVALID_ARGUMENT
    for error in (MISSING, DAMAGED, unfit):
        known.failed(digest, error)
        assert reason(catalog, known) == error.reason
    known.loaded(digest)
    assert reason(catalog, known) == ""


def test_a_task_is_unavailable_if_all_that_answers_it_is(
    seed: Seed, make_adapter: MakeAdapter, open_store: Open
) -> None:
    first, second = seed("t", make_adapter(seed=1)), seed("t", make_adapter(seed=2))
    catalog, known = open_store()
    row = catalog.set_traffic(ME, "t", [(first, 1), (second, 9)])
    known.failed(second, DAMAGED)
    assert known.reason_of_task(row) == ""
    known.failed(first, MISSING)
    assert known.reason_of_task(row) == "BLOB_CORRUPT", "of the heaviest"


def test_without_a_live_version_that_is_the_reason(seed: Seed, make_adapter: MakeAdapter, open_store: Open) -> None:
    seed("t", make_adapter(fingerprint="c" * 64))
    catalog, known = open_store()
    assert reason(catalog, known) == "BACKBONE_CHANGED"


def test_a_head_that_predict_does_not_answer(seed: Seed, make_adapter: MakeAdapter, open_store: Open) -> None:
    seed("t", make_adapter())
    catalog, known = open_store()
    row = catalog.get_task(ME, "t")
    generator = msgspec.structs.replace(row.live[0], head=HeadSpec(type="causal_lm", pooling="none"))
    changed: TaskRow = msgspec.structs.replace(row, live=(generator,))
    assert known.reason_of_task(changed) == "WRONG_HEAD"
    writes = Availability(catalog.blobs, 1 << 30, "float32", generates=True)
    assert writes.reason_of_task(changed) == ""
    cloze = msgspec.structs.replace(row.live[0], head=HeadSpec(type="cloze", pooling="last"))
    assert writes.reason(cloze) == "WRONG_HEAD"


def test_only_so_many_failures_are_remembered(open_store: Open) -> None:
    _, known = open_store()
    digests = [f"{number:064x}" for number in range(MAX_REMEMBERED_FAILURES)]
    for digest in digests:
        known.failed(digest, MISSING)
    assert len(known._failures) == MAX_REMEMBERED_FAILURES
    known.failed("f" * 64, MISSING)
    assert len(known._failures) == MAX_REMEMBERED_FAILURES
    assert digests[0] not in known._failures
    assert digests[1] in known._failures
