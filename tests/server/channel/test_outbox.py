"""What waits for a reader who does not read is bounded, and tells him how things stand."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from adamix_server.access.leases import Loan
from adamix_server.channel.outbox import Outbox
from adamix_server.channel.supervisor_frames import Agreed, Drain, EngineDown, Loans, Refresh, Seen

_FRAMES = st.one_of(
    st.builds(Agreed, revision=st.integers(0, 9), oldest=st.integers(0, 9)),
    st.builds(Refresh, revision=st.integers(0, 9)),
    st.builds(EngineDown, generation=st.integers(1, 9), engine_id=st.just("0")),
    st.just(Drain(delay_s=0, grace_s=1)),
)


@given(st.lists(st.lists(_FRAMES, max_size=8), max_size=8))
def test_a_late_reader_hears_the_newest_of_each_kind_in_the_order_they_were_said(said: list[list[Any]]) -> None:
    outbox = Outbox[Any]()
    for frames in said:
        newest = {type(frame): frame for frame in frames}
        for frame in frames:
            outbox.put(frame)
        assert len(outbox) == len(newest) <= 4
        last_put = sorted(newest.values(), key=lambda frame: max(i for i, f in enumerate(frames) if f is frame))
        heard = []
        while (frame := outbox.take()) is not None:
            heard.append(frame)
        assert heard == last_put


def test_a_frame_that_is_made_when_it_is_taken_has_in_it_what_came_meanwhile() -> None:
    outbox, gathered = Outbox[Any](), [1]
    outbox.put_made(list, lambda: list(gathered))
    outbox.put(Seen(revision=1, oldest=1))
    outbox.put_made(list, lambda: list(gathered))
    gathered.append(2)
    assert outbox.take() == Seen(revision=1, oldest=1)
    assert outbox.take() == [1, 2]
    assert outbox.take() is None


def test_frames_that_say_what_happened_wait_as_one_that_says_all_of_it() -> None:
    outbox = Outbox[Any]()
    outbox.put(Loans(loans=[_loan("a", 2.0), _loan("b", 1.0)]))
    outbox.put(Refresh(revision=1))
    outbox.put(Loans(loans=[_loan("c", 4.0), _loan("a", 0.5)]))
    outbox.put(Loans(loans=[_loan("a", 0.25)]))
    assert outbox.take() == Refresh(revision=1)
    assert outbox.take() == Loans(loans=[_loan("a", 2.75), _loan("b", 1.0), _loan("c", 4.0)])
    assert outbox.take() is None


def _loan(tenant: str, lent: float) -> Loan:
    return Loan(tenant=tenant, quota="input_tokens_per_s", number=1, lent=lent)
