"""Pages: each is free, idle or referenced; what is found holds what it says; names that cannot be mixed up."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adamix.errors import InternalError
from adamix_server.engine.pages import Pages, first_key, next_key

COUNT = 8


class PagesMachine(RuleBasedStateMachine):
    """Against a model that knows the content of each page, and the order in which idle ones were last used."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages(COUNT, 4)
        self.references: dict[int, int] = {}
        self.content: dict[int, bytes] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()

    @precondition(lambda self: len(self.references) < COUNT - 1)
    @rule()
    def take(self) -> None:
        oldest, num_free = next(iter(self.idle), None), self.pages.num_free
        page = self.pages.take()
        assert page not in self.references
        assert page != 0
        if page in self.idle:
            assert (num_free, page) == (0, oldest)
            del self.idle[page], self.content[page]
        self.references[page] = 1

    @precondition(lambda self: len(self.references) == COUNT - 1)
    @rule()
    def take_too_many(self) -> None:
        with pytest.raises(InternalError, match="no page is left"):
            self.pages.take()

    @rule(data=st.data(), key=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def publish(self, data: st.DataObject, key: bytes) -> None:
        if self.references:
            page = data.draw(st.sampled_from(sorted(self.references)))
            self.pages.publish(page, key)
            if key not in self.content.values() and page not in self.content:
                self.content[page] = key

    @rule(key=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def find_and_share(self, key: bytes) -> None:
        page = self.pages.find(key)
        assert page == next((page for page, content in self.content.items() if content == key), None)
        if page is not None:
            self.pages.share(page)
            self.idle.pop(page, None)
            self.references[page] = self.references.get(page, 0) + 1

    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        if self.references:
            page = data.draw(st.sampled_from(sorted(self.references)))
            self.pages.drop(page)
            self.references[page] -= 1
            if not self.references[page]:
                del self.references[page]
                if page in self.content:
                    self.idle[page] = None

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        page = data.draw(st.integers(1, COUNT - 1))
        self.pages.withdraw(page)
        self.content.pop(page, None)
        self.idle.pop(page, None)

    @rule(page=st.integers(0, COUNT - 1))
    def refuse_what_nobody_references(self, page: int) -> None:
        if page not in self.references:
            with pytest.raises(InternalError):
                self.pages.drop(page)
            with pytest.raises(InternalError):
                self.pages.publish(page, b"z")
            if page not in self.idle:
                with pytest.raises(InternalError):
                    self.pages.share(page)

    @invariant()
    def every_page_is_in_one_place(self) -> None:
        pages = self.pages
        assert pages.num_referenced == len(self.references)
        assert pages.num_idle == len(self.idle)
        assert pages.num_free + pages.num_idle + pages.num_referenced == COUNT - 1
        assert pages.num_available == pages.num_free + pages.num_idle


TestPages = PagesMachine.TestCase
TestPages.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)

names = st.tuples(*(st.text("ab|", max_size=3) for _ in range(3)))


@given(names, names)
def test_names_of_tenant_adapter_and_backbone_cannot_be_mixed_up(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    assert (first_key(*one) == first_key(*other)) == (one == other)


def test_names_do_not_run_into_each_other() -> None:
    keys = {first_key(*each) for each in (("ab", "c", "d"), ("a", "bc", "d"), ("abc", "", "d"), ("a", "b", "cd"))}
    assert len(keys) == 4


@given(st.lists(st.integers(-5, 5), min_size=4, max_size=4), st.lists(st.integers(-5, 5), min_size=4, max_size=4))
def test_a_key_says_what_lies_before_and_in_a_page(one: list[int], other: list[int]) -> None:
    tokens, others = np.array(one, np.int32), np.array(other, np.int32)
    first = first_key("t", "d", "b")
    assert (next_key(first, tokens) == next_key(first, others)) == (one == other)
    assert (next_key(next_key(first, tokens), others) == next_key(next_key(first, others), tokens)) == (one == other)
    assert next_key(first, tokens) != next_key(first_key("u", "d", "b"), tokens)


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_pages_that_tokens_need(tokens: int, pages: int) -> None:
    assert Pages(4, 16).needed(tokens) == pages


@pytest.mark.parametrize(("count", "page_tokens"), [(1, 16), (0, 16), (2, 0)])
def test_pages_that_hold_nothing_are_none(count: int, page_tokens: int) -> None:
    with pytest.raises(InternalError, match="hold nothing"):
        Pages(count, page_tokens)
