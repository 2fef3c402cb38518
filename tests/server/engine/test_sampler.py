"""The engine's sampler: the definition's tokens in any company and order, hardly ever sorting a vocabulary."""

from collections.abc import Sequence as Ordered

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from adamix.errors import InvalidConfig
from adamix.generation import drawing
from adamix.generation.sampling import GREEDY, Sampling
from adamix_server.channel.engine_frames import GenerateParams, Row
from adamix_server.engine import sampler
from adamix_server.engine.request import Request
from adamix_server.engine.residency.slots import Hold
from adamix_server.engine.sampler import Drawn, Sampler
from adamix_server.engine.sequence import Sequence

SETTINGS = [
    GREEDY,
    Sampling(repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=-0.3),
    Sampling(no_repeat_ngram_size=2),
    Sampling(temperature=1.0),
    Sampling(temperature=0.3),
    Sampling(temperature=5.0),
    Sampling(temperature=1e-44),
    Sampling(temperature=0.8, top_k=1),
    Sampling(temperature=0.8, top_k=40),
    Sampling(temperature=1.5, top_k=256),
    Sampling(temperature=1.5, top_k=300),
    Sampling(temperature=1.2, top_p=0.9),
    Sampling(temperature=3.0, top_p=0.99),
    Sampling(temperature=1.0, min_p=0.02),
    Sampling(temperature=4.0, min_p=0.001),
    Sampling(temperature=0.9, top_k=100, top_p=0.9, min_p=0.01, repetition_penalty=1.2, no_repeat_ngram_size=3),
    Sampling(temperature=1.1, top_p=0.95, frequency_penalty=1.5, repetition_penalty=0.6),
]


def sequence(sampling: Sampling, seed: int = 0, generated: Ordered[int] = (), logprobs: int | None = None) -> Sequence:
    prompt = np.array([1, 2, 3], "<i4")
    params = GenerateParams(max_new_tokens=len(generated) + 1, sampling=sampling, logprobs=logprobs)
    asked = Row(id=0, tenant="", digest="", token_ids=prompt.tobytes(), deadline=float("inf"), generate=params)
    made = Sequence.of(Request(asked, peer=b"", arrived=0.0, hold=Hold("", since=0.0)), seed)
    made.buffer[3 : 3 + len(generated)] = generated
    made.num_tokens += len(generated)
    return made


def rows(num: int, size: int, seed: int = 0, scale: float = 2.5) -> torch.Tensor:
    random = np.random.default_rng(seed)
    # Few different values: many are equal.
    return torch.from_numpy((random.normal(0, scale, (num, size)) * 16).round().astype(np.float32) / 16)


def texts(num: int, size: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, min(size, 30), random.integers(0, 40)).tolist() for _ in range(num)]


def defined(logits: torch.Tensor, sequences: Ordered[Sequence]) -> list[Drawn | None]:
    found: list[Drawn | None] = []
    for logits_of, asked in zip(logits.numpy(), sequences, strict=True):
        assert asked.params is not None
        token = drawing.next_token(logits_of, asked.generated, asked.params.sampling, asked.seed)
        alternatives = asked.params.logprobs
        probabilities = (
            b"" if alternatives is None or token is None else drawing.logprobs(logits_of, token, alternatives)
        )
        found.append(None if token is None else Drawn(token, probabilities))
    return found


@pytest.fixture(params=["cpu", "as on a device"])
def where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second: what is chosen for a GPU, on a CPU."""
    if request.param != "cpu":
        monkeypatch.setattr(sampler, "_is_host", lambda _: False)


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("size", [7, 256, 257, 3000])
def test_tokens_and_logprobs_are_the_definitions(size: int) -> None:
    num = 6 * len(SETTINGS)
    for scale in (0.5, 2.5):
        logits = rows(num, size, scale=scale)
        asked = [
            sequence(SETTINGS[i % len(SETTINGS)], i, text, (None, 0, 5, 20)[i % 4] if size > 20 else None)
            for i, text in enumerate(texts(num, size))
        ]
        assert Sampler(size).draw(logits, asked) == defined(logits, asked)


def test_a_draw_has_the_same_token_alone_in_company_and_in_any_order() -> None:
    logits = rows(2 * len(SETTINGS), 500)
    asked = [sequence(SETTINGS[i % len(SETTINGS)], i // 5, text) for i, text in enumerate(texts(len(logits), 500))]
    together = Sampler(500).draw(logits, asked)
    assert [Sampler(500).draw(logits[i : i + 1], [one])[0] for i, one in enumerate(asked)] == together
    order = np.random.default_rng(1).permutation(len(asked)).tolist()
    assert Sampler(500).draw(logits[order], [asked[i] for i in order]) == [together[i] for i in order]


def test_seeds_and_positions_make_different_draws() -> None:
    logits = torch.zeros(1, 5000).expand(64, 5000).contiguous()
    hot = Sampling(temperature=1.0)
    by_seed = Sampler(5000).draw(logits, [sequence(hot, seed) for seed in range(64)])
    by_position = Sampler(5000).draw(logits, [sequence(hot, 1, [0] * n) for n in range(64)])
    assert len({drawn.token for drawn in by_seed if drawn}) > 60
    assert len({drawn.token for drawn in by_position if drawn}) > 60


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_ends_alone(bad: float) -> None:
    logits = rows(2 * len(SETTINGS), 400)
    asked = [sequence(SETTINGS[i // 2], i, [1, 2, 1], 3) for i in range(len(logits))]
    expected = Sampler(400).draw(logits, asked)
    logits[::2, 17] = bad
    assert Sampler(400).draw(logits, asked) == [None if i % 2 == 0 else drawn for i, drawn in enumerate(expected)]


def test_logits_are_left_as_they_were_and_the_likeliest_costs_nothing_else() -> None:
    logits = rows(4, 1000)
    before = logits.clone()
    asked = [sequence(SETTINGS[-1 - i], i, [1, 2, 1]) for i in range(4)]
    Sampler(1000).draw(logits, asked)
    assert torch.equal(logits, before)

    seen: list[str] = []

    class Seen(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(function.__name__)
            return function(*args, **(kwargs or {}))

    with Seen():
        drawn = Sampler(1000).draw(logits, [sequence(GREEDY) for _ in range(4)])
    assert [one.token for one in drawn if one] == logits.argmax(-1).tolist()
    assert not {"topk", "sort", "exp", "logsumexp", "where"} & set(seen)
    assert seen.count("cpu") == 1


def test_the_host_never_waits_for_one_number_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "_is_host", lambda _: False)
    waits = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}
    copies: list[str] = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            copies.append(function.name())
            return function(*args, **(kwargs or {}))

    asked = [sequence(sampling, i, [1, 2, 1]) for i, sampling in enumerate(SETTINGS)]
    with Watched():
        Sampler(200).draw(rows(len(SETTINGS), 200), asked)
    assert "aten::topk" in copies
    assert not waits & set(copies)


def test_only_rows_whose_best_fall_short_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_rows: list[int] = []
    plain = drawing.next_token

    def counted(logits, generated, sampling, seed):  # type: ignore[no-untyped-def]
        sorted_rows.append(seed)
        return plain(logits, generated, sampling, seed)

    monkeypatch.setattr(drawing, "next_token", counted)
    vocabulary = 49_152
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(0, 1, (4, vocabulary)).astype(np.float32))
    logits[:3, :40] += 14
    nearly_flat = Sampling(temperature=1.0, top_p=0.9)
    asked = [
        sequence(Sampling(temperature=1.0, top_p=0.95), 0),
        sequence(Sampling(temperature=1.0), 1),
        sequence(Sampling(temperature=0.7, repetition_penalty=1.2), 2, [1, 2, 3]),
        sequence(nearly_flat, 3),
    ]
    found = Sampler(vocabulary).draw(logits, asked)
    assert sorted_rows == [3]
    assert found == defined(logits, asked)


def test_equal_scores_at_the_end_of_what_is_looked_at() -> None:
    logits = torch.zeros(6, 2000)
    logits[:, 1500:] = 1.0
    asked = [
        sequence(Sampling(temperature=1.0, top_k=200), 1),
        sequence(Sampling(temperature=1.0, top_p=0.3), 2),
        sequence(Sampling(repetition_penalty=1.5), 3, [1500, 1501]),
        sequence(Sampling(temperature=1.0, min_p=0.9), 4),
        sequence(GREEDY, 5, logprobs=20),
        sequence(Sampling(no_repeat_ngram_size=1), 6, list(range(2000))),
    ]
    assert Sampler(2000).draw(logits, asked) == defined(logits, asked)
    assert [drawn.token for drawn in defined(logits, asked) if drawn][2:3] == [1502]


def test_draws_come_as_often_as_their_probabilities_say() -> None:
    texts_drawn, kept = 3000, 6
    logits = rows(1, 3000, scale=1.0)
    logits[0, 100:130] += torch.arange(30) * 0.25
    asked = [sequence(Sampling(temperature=0.8, top_k=kept), seed) for seed in range(texts_drawn)]
    drawn = Sampler(3000).draw(logits.expand(texts_drawn, -1), asked)
    best = logits[0].topk(kept)
    expected = (texts_drawn * (best.values / 0.8).softmax(-1)).numpy()
    counts = np.array([sum(one is not None and one.token == token for one in drawn) for token in best.indices.tolist()])
    assert counts.sum() == texts_drawn
    # 20.5 is exceeded once in a thousand times at 5 degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 20.5


def test_nothing_is_drawn_from_logits_that_are_not_the_rows() -> None:
    assert Sampler(10).draw(torch.zeros(0, 10), []) == []
    for shape in ((1, 9), (2, 10)):
        with pytest.raises(InvalidConfig, match="logits are"):
            Sampler(10).draw(torch.zeros(shape), [sequence(GREEDY)])
