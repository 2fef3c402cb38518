"""A sequence: how far it is, by what its text ends, and which of its tokens are the text."""

from collections.abc import Sequence as Ordered

import numpy as np
import pytest

from adamix.generation.sampling import Sampling
from adamix_server.channel.engine_frames import GenerateParams, Row
from adamix_server.engine.request import Request
from adamix_server.engine.residency.slots import Hold
from adamix_server.engine.sequence import Sequence, Work, ending


def sequence(generated: Ordered[int] = (), *, is_generated: bool = True, given_seed: int | None = None) -> Sequence:
    params = GenerateParams(
        max_new_tokens=4, sampling=Sampling(seed=given_seed), eos_ids=[2, 3], stop_ids=[3, 9], ignore_eos=False
    )
    return of(params if is_generated else None, generated)


def of(params: GenerateParams | None, generated: Ordered[int]) -> Sequence:
    row = Row(
        id=1,
        tenant="t",
        digest="d",
        token_ids=np.array([5, 2, 6], "<i4").tobytes(),
        deadline=1.0,
        generate=params,
    )
    made = Sequence.of(Request(row, b"peer", 0.0, Hold("d", 0.0)), seed=11)
    for token in generated:
        made.buffer[made.num_tokens] = token
        made.num_tokens += 1
    return made


@pytest.mark.parametrize(
    ("generated", "reason", "text"),
    [
        ([], None, []),
        ([5], None, [5]),
        ([5, 2], "eos", [5]),
        ([2], "eos", []),
        ([3], "eos", []),  # an end of text, though a stop token, too
        ([5, 9], "stop", [5]),
        ([5, 5, 5], None, [5, 5, 5]),
        ([5, 5, 5, 5], "length", [5, 5, 5, 5]),
        ([5, 5, 5, 2], "eos", [5, 5, 5]),
        ([5, 5, 5, 9], "stop", [5, 5, 5]),
    ],
)
def test_by_what_a_text_ends(generated: list[int], reason: str | None, text: list[int]) -> None:
    made = sequence(generated)
    assert ending(made) == reason
    assert made.text.tolist() == text
    assert made.num_text == len(text)
    assert made.generated.tolist() == generated
    assert made.num_generated == len(generated)


@pytest.mark.parametrize(
    ("generated", "reason", "text"), [([2], None, [2]), ([3], "stop", []), ([2, 2, 2, 2], "length", [2, 2, 2, 2])]
)
def test_an_end_of_text_that_is_ignored_is_text(generated: list[int], reason: str | None, text: list[int]) -> None:
    params = GenerateParams(max_new_tokens=4, eos_ids=[2, 3], stop_ids=[3], ignore_eos=True)
    made = of(params, generated)
    assert ending(made) == reason
    assert made.text.tolist() == text


def test_what_is_answered_by_a_head_has_no_text() -> None:
    made = sequence(is_generated=False)
    assert ending(made) is None
    assert made.text.tolist() == []
    assert made.tokens.tolist() == [5, 2, 6]


def test_work_with_the_last_token_is_complete() -> None:
    made = sequence()
    assert [Work(made, number).is_complete for number in (1, 2, 3)] == [False, False, True]
    made.num_computed = 2
    assert Work(made, 1).is_complete


@pytest.mark.parametrize(("given_seed", "seed"), [(None, 11), (0, 0), (5, 5)])
def test_a_seed_is_the_request_s_own_if_it_brings_one(given_seed: int | None, seed: int) -> None:
    assert sequence(given_seed=given_seed).seed == seed
