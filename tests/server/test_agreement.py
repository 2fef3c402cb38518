"""Front ends that agree: both sides' books, frames in between that take their time, and front ends that die."""

from collections import deque
from contextlib import ExitStack
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adamix_server.agreement import Books, Party
from adamix_server.channel.supervisor_frames import Agreed, Refresh, Seen


def seen(revision: int, oldest: int | None = None) -> Seen:
    return Seen(revision=revision, oldest=revision if oldest is None else oldest)


def agreed(revision: int, oldest: int | None = None) -> Agreed:
    return Agreed(revision=revision, oldest=revision if oldest is None else oldest)


def test_one_front_end_agrees_with_itself_at_once() -> None:
    books = Books()
    assert books.seen("a", seen(3)) == [("a", agreed(3))]
    assert books.seen("a", seen(4, 3)) == [("a", agreed(4, 3))]
    assert books.seen("a", seen(4, 4)) == [("a", agreed(4, 4))]
    assert books.seen("a", seen(4, 4)) == []


def test_a_change_is_agreed_on_when_the_last_one_has_seen_it() -> None:
    books = Books()
    books.seen("a", seen(1))
    books.seen("b", seen(1))
    assert books.seen("a", seen(2)) == [("b", Refresh(revision=2))]
    assert books.seen("b", seen(2, 1)) == [("a", agreed(2, 1)), ("b", agreed(2, 1))]
    assert books.seen("b", seen(2, 2)) == [("a", agreed(2)), ("b", agreed(2))]


def test_one_that_dies_holds_nobody_up() -> None:
    books = Books()
    for name in "abc":
        books.seen(name, seen(1))
    books.seen("a", seen(2))
    books.seen("b", seen(2))
    assert books.left("c") == [("a", agreed(2)), ("b", agreed(2))]
    assert books.left("c") == []
    assert books.left("a") == books.left("b") == []
    assert books.agreed == agreed(2)


def test_one_that_joins_is_told_what_it_must_reach_and_breaks_no_promise() -> None:
    books = Books()
    books.seen("a", seen(5))
    assert books.seen("late", seen(3)) == [("late", Refresh(revision=5)), ("late", agreed(5))]
    assert books.agreed == agreed(5)
    # From now on nothing is agreed on without it.
    assert books.seen("a", seen(6)) == [("late", Refresh(revision=6))]
    assert books.seen("late", seen(6)) == [("a", agreed(6)), ("late", agreed(6))]


def test_frames_that_overtake_one_another_take_nothing_back() -> None:
    books = Books()
    books.seen("a", seen(5))
    assert books.seen("a", seen(4)) == []
    assert books.agreed == agreed(5)


class FrontEnd:
    """A front end with the real books of its own, and frames on their way to and from it."""

    def __init__(self) -> None:
        self.books = Party()
        self.said: Seen | None = None
        self.is_stale = False
        self.answers_calls = False
        self.inbox: deque[Agreed | Refresh] = deque()
        self.outbox: deque[Seen] = deque()
        # Running calls: the revision each resolved at, and what ends it.
        self.calls: list[tuple[int, ExitStack]] = []

    @property
    def revision(self) -> int:
        return self.books.seen.revision

    def refresh(self, revision: int) -> None:
        self.is_stale = False
        if revision > self.revision:
            self.books.serve(revision)
        self.speak()

    def read(self) -> None:
        """Take the next frame in; what a `Refresh` asks for is done later."""
        if self.inbox:
            match self.inbox.popleft():
                case Refresh():
                    self.is_stale = True
                case Agreed() as frame:
                    self.books.take(frame)
        self.answers_calls |= self.books.is_admitted

    def speak(self) -> None:
        if self.books.seen != self.said:
            self.said = self.books.seen
            self.outbox.append(self.said)


class Servers(RuleBasedStateMachine):
    """What must hold whatever happens in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.catalog = 0
        self.books = Books()
        self.live: dict[str, FrontEnd] = {}
        self.born = 0

    def post(self, letters: list[tuple[str, Any]]) -> None:
        for name, frame in letters:
            self.live[name].inbox.append(frame)

    def choose(self, data: st.DataObject) -> tuple[str, FrontEnd]:
        return data.draw(st.sampled_from(sorted(self.live.items())))

    @rule()
    def start(self) -> None:
        if len(self.live) < 3:
            self.born += 1
            one = self.live[str(self.born)] = FrontEnd()
            one.refresh(self.catalog)

    some = precondition(lambda self: self.live)

    @some
    @rule(data=st.data(), commits=st.booleans())
    def refresh(self, data: st.DataObject, commits: bool) -> None:
        self.catalog += commits
        self.choose(data)[1].refresh(self.catalog)

    @some
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        name, _ = self.choose(data)
        del self.live[name]
        self.post(self.books.left(name))

    def supervisor_reads(self, name: str) -> None:
        if self.live[name].outbox:
            self.post(self.books.seen(name, self.live[name].outbox.popleft()))

    @some
    @rule(data=st.data(), supervisor=st.booleans())
    def one_frame_arrives(self, data: st.DataObject, supervisor: bool) -> None:
        name, one = self.choose(data)
        if supervisor:
            self.supervisor_reads(name)
        else:
            one.read()

    @some
    @rule(data=st.data())
    def everything_of_one_arrives(self, data: st.DataObject) -> None:
        name, one = self.choose(data)
        while one.outbox or one.inbox or one.is_stale:
            if one.is_stale:
                one.refresh(self.catalog)
            self.supervisor_reads(name)
            one.read()

    @some
    @rule(data=st.data())
    def call_begins(self, data: st.DataObject) -> None:
        one = self.choose(data)[1]
        if one.answers_calls:
            call = ExitStack()
            call.enter_context(one.books.reading())
            one.calls.append((one.revision, call))

    @some
    @rule(data=st.data())
    def call_ends(self, data: st.DataObject) -> None:
        one = self.choose(data)[1]
        if one.calls:
            one.calls.pop(data.draw(st.integers(0, len(one.calls) - 1)))[1].close()
            one.speak()

    @invariant()
    def nobody_answers_from_before_what_was_agreed_on(self) -> None:
        for one in self.live.values():
            if one.answers_calls:
                assert one.revision >= self.books.agreed.revision

    @invariant()
    def nobody_uses_what_was_agreed_to_be_unused(self) -> None:
        for one in self.live.values():
            assert all(revision >= self.books.agreed.oldest for revision, _ in one.calls)

    @invariant()
    def what_is_unused_is_not_served_either(self) -> None:
        assert self.books.agreed.oldest <= self.books.agreed.revision <= self.catalog

    def teardown(self) -> None:
        """When everyone has read everything and no call runs, all agree on the newest that anyone has seen."""
        for one in self.live.values():
            for _, call in one.calls:
                call.close()
            one.refresh(self.catalog)
        while any(one.inbox or one.outbox for one in self.live.values()):
            for name, one in self.live.items():
                self.supervisor_reads(name)
                one.read()
        if self.live:
            assert self.books.agreed == agreed(self.catalog)
            assert all(one.books.is_admitted for one in self.live.values())


TestServers = Servers.TestCase
TestServers.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
