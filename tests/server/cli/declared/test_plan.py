"""The algebra of plans: exact, complete, in order, and empty the second time."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from adamix_server.cli.declared.plan import ACTIONS, ActualTask, Step, WantedTask, plan, ratio

DIGESTS = [letter * 64 for letter in "abcdef"]
TASKS = ["one", "two", "three"]
TENANTS = ["acme", "beta"]

some_digests = st.sets(st.sampled_from(DIGESTS), max_size=4).map(frozenset)
some_tenants = st.sets(st.sampled_from(TENANTS)).map(frozenset)


def shares_of(digests: Collection[str]) -> st.SearchStrategy[dict[str, int]]:
    if not digests:
        return st.just({})
    return st.dictionaries(st.sampled_from(sorted(digests)), st.integers(1, 6), max_size=3)


def some_of(digests: Collection[str]) -> st.SearchStrategy[frozenset[str]]:
    return shares_of(digests).map(frozenset)


@st.composite
def actual_tasks(draw: st.DrawFn) -> ActualTask:
    versions = draw(some_digests)
    return ActualTask(
        versions=versions,
        traffic=draw(shares_of(versions)),
        pins=draw(some_of(versions)),
        grants=draw(some_tenants),
        etag=draw(st.sampled_from(["e1", "e2"])),
    )


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[WantedTask], dict[str, ActualTask]]:
    """What is declared, of files and of versions that are there, and what is there."""
    actual = draw(st.dictionaries(st.sampled_from(TASKS), actual_tasks()))
    wanted = []
    for name in draw(st.lists(st.sampled_from(TASKS), unique=True)):
        there = actual.get(name, ActualTask()).versions
        files = {digest: Path(digest[:1]) for digest in draw(some_digests)}
        if not files and name not in actual:
            continue
        known = frozenset({*files, *there})
        traffic = draw(st.none() | shares_of(known)) or None
        pins = draw(st.none() | some_of(known))
        named = frozenset({*files, *(traffic or ()), *(pins or ())})
        wanted.append(
            WantedTask(
                name,
                files=files,
                versions=draw(st.sampled_from([None, named])) if not files else named,
                traffic=traffic,
                pins=pins,
                grants=draw(st.none() | some_tenants),
            )
        )
    return wanted, actual


def take(step: Step, world: Mapping[str, ActualTask]) -> dict[str, ActualTask]:
    """What a server makes of one step; it refuses what a server does."""
    found = dict(world)
    task = found.get(step.task, ActualTask())
    assert not step.etag or step.etag == task.etag, "stale"
    match step.action:
        case "register":
            task = replace(task, versions=task.versions | {step.digest}, etag=f"{task.etag}+")
        case "traffic":
            assert step.traffic.keys() <= task.versions
            assert step.was == task.traffic
            task = replace(task, traffic=dict(step.traffic), etag=f"{task.etag}+")
        case "pin":
            assert step.digest in task.versions
            task = replace(task, pins=task.pins | {step.digest})
        case "unpin":
            task = replace(task, pins=task.pins - {step.digest})
        case "grant":
            task = replace(task, grants=task.grants | {step.tenant})
        case "revoke":
            task = replace(task, grants=task.grants - {step.tenant})
        case "delete-version":
            assert step.digest not in task.traffic, "live"
            assert step.digest not in task.pins
            task = replace(task, versions=task.versions - {step.digest}, etag=f"{task.etag}+")
        case "delete-task":
            del found[step.task]
            return found
    found[step.task] = task
    return found


@given(worlds(), st.booleans())
def test_applied_once_nothing_differs_and_each_step_changed_something(
    world: tuple[list[WantedTask], dict[str, ActualTask]], prune: bool
) -> None:
    wanted, before = world
    steps = plan(wanted, before, prune=prune)
    assert [ACTIONS.index(step.action) for step in steps] == sorted(ACTIONS.index(step.action) for step in steps)
    now = dict(before)
    for step in steps:
        after = take(step, now)
        assert after != now
        now = after
    assert plan(wanted, now, prune=prune) == []
    for task in wanted:
        found, was = now.get(task.task, ActualTask()), before.get(task.task, ActualTask())
        assert found.versions >= task.files.keys()
        assert ratio(found.traffic) == ratio(was.traffic if task.traffic is None else task.traffic)
        assert found.pins == (was.pins if task.pins is None else task.pins)
        assert found.grants == (was.grants if task.grants is None else task.grants)
        if prune and task.versions is not None:
            assert found.versions - task.versions <= found.traffic.keys() | found.pins
        else:
            assert found.versions == was.versions | task.files.keys()
    others = before.keys() - {task.task for task in wanted}
    assert all((name not in now) if prune else now[name] == before[name] for name in others)


@given(worlds(), st.data())
def test_a_plan_that_ended_half_way_is_gone_on_with(
    world: tuple[list[WantedTask], dict[str, ActualTask]], data: st.DataObject
) -> None:
    wanted, now = world
    steps = plan(wanted, now, prune=True)
    for step in steps[: data.draw(st.integers(0, len(steps)))]:
        now = take(step, now)
    rest = plan(wanted, now, prune=True)
    for step in rest:
        now = take(step, now)
    assert plan(wanted, now, prune=True) == []
    assert len(rest) <= len(steps)


def test_weights_are_compared_by_their_ratio() -> None:
    actual = {"t": ActualTask(versions=frozenset(DIGESTS), traffic={DIGESTS[0]: 90, DIGESTS[1]: 10})}
    assert plan([WantedTask("t", traffic={DIGESTS[0]: 9, DIGESTS[1]: 1})], actual, prune=False) == []
    (step,) = plan([WantedTask("t", traffic={DIGESTS[0]: 8, DIGESTS[1]: 1})], actual, prune=False)
    assert step.document == {
        "action": "traffic",
        "task": "t",
        "traffic": {DIGESTS[0]: 8, DIGESTS[1]: 1},
        "was": {DIGESTS[0]: 90, DIGESTS[1]: 10},
    }
