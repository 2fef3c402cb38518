"""Room for large answers: how large one may be, and how many there are at once."""

import pytest

from adamix.errors import InvalidRequest, Overloaded
from adamix_server.frontend.http.open_ai.answer_room import AnswerRoom
from adamix_server.limits.open_ai import ANSWERS_BYTES, MAX_ANSWER_BYTES


def test_so_large_an_answer_and_no_larger() -> None:
    room = AnswerRoom()
    room.take("acme", MAX_ANSWER_BYTES, "ask for less", "input")()
    with pytest.raises(InvalidRequest) as caught:
        room.take("acme", MAX_ANSWER_BYTES + 1, "ask for less", "input")
    assert (caught.value.reason, caught.value.field) == ("ANSWER_TOO_LARGE", "input")
    assert "ask for less" in caught.value.message


def test_so_much_room_a_tenant_has_and_all_of_them_together() -> None:
    room = AnswerRoom()
    a_half = ANSWERS_BYTES // 2 // MAX_ANSWER_BYTES
    gives = [room.take("acme", MAX_ANSWER_BYTES, "", "input") for _ in range(a_half)]
    with pytest.raises(Overloaded) as caught:
        room.take("acme", 1, "", "input")
    assert caught.value.reason == "BYTES_IN_FLIGHT"
    assert caught.value.retry_after_s
    for _ in range(a_half):
        room.take("other", MAX_ANSWER_BYTES, "", "input")
    with pytest.raises(Overloaded):
        room.take("third", 1, "", "input")
    gives[0]()
    room.take("third", MAX_ANSWER_BYTES, "", "input")


def test_what_is_given_back_twice_is_given_back_once() -> None:
    room = AnswerRoom(4)
    give = room.take("acme", 2, "", "input")
    give()
    give()
    room.take("acme", 2, "", "input")
    with pytest.raises(Overloaded):
        room.take("acme", 1, "", "input")


def test_what_is_kept_of_a_request_takes_room_and_is_no_answer() -> None:
    room = AnswerRoom(2 * (MAX_ANSWER_BYTES + 2))
    give = room.take("acme", MAX_ANSWER_BYTES, "", "input", 2)
    with pytest.raises(Overloaded):
        room.take("acme", 0, "", "input", 1)
    give()
    room.take("acme", 0, "", "input", 1)
