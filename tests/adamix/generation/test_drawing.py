"""What the settings of a draw mean: as transformers' processors, at every edge, as often as the probabilities say."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from adamix.backbones.backbone import Backbone, from_language_model
from adamix.errors import FailedPrecondition, InvalidConfig
from adamix.generation import drawing
from adamix.generation.sample import sample
from adamix.generation.sampling import GREEDY, MAX_SEED, Sampling

NOTHING = np.zeros(0, np.int32)
TEXT = np.array([3, 5, 3, 7, 5, 3], np.int32)
# Of equal numbers transformers keeps all.
NUMBERS = np.linspace(0.0005, 0.9995, 1000)


def row(size: int = 64, seed: int = 0) -> drawing.Scores:
    return np.random.default_rng(seed).normal(0, 2, size).astype(np.float32)


def drawn(logits: drawing.Scores, sampling: Sampling, generated: Any = NOTHING) -> dict[int, int]:
    """How often each token comes at numbers that lie evenly."""
    scores = drawing.changed(logits, drawing.changes_of(generated, sampling))
    order = np.argsort(-scores, kind="stable")
    places = [drawing.place(scores[order], sampling, number) for number in NUMBERS]
    return {int(order[place]): places.count(place) for place in set(places) if place is not None}


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.1},
        {"temperature": 1.0, "repetition_penalty": 1.7},
        {"temperature": 1.0, "repetition_penalty": 0.5},
        {"temperature": 1.0, "no_repeat_ngram_size": 1},
        {"temperature": 1.0, "no_repeat_ngram_size": 2},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.7, "min_p": 0.05, "repetition_penalty": 1.4},
        {"temperature": 0.5, "top_k": 30, "top_p": 0.95, "no_repeat_ngram_size": 2, "repetition_penalty": 1.1},
    ],
    ids=str,
)
def test_the_same_tokens_as_transformers_with_the_same_probabilities(given: dict[str, Any]) -> None:
    sampling = Sampling(**given)
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram_size))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    for seed in range(5):
        logits = row(seed=seed)
        scores = processors(torch.from_numpy(TEXT.astype(np.int64))[None], torch.from_numpy(logits.copy())[None])
        probabilities = scores.softmax(-1)[0].numpy()
        found = drawn(logits, sampling, TEXT)
        assert {token for token, share in enumerate(probabilities) if share > 2e-3} <= set(found)
        for token, count in found.items():
            assert count / len(NUMBERS) == pytest.approx(probabilities[token], abs=2.1e-3)
            assert probabilities[token] > 0


def test_presence_counts_once_and_frequency_each_time_and_only_in_the_generated_text() -> None:
    logits = np.zeros(8, np.float32)
    changed = drawing.changed(logits, drawing.changes_of(TEXT, Sampling(presence_penalty=0.5, frequency_penalty=0.25)))
    assert changed.tolist() == [0, 0, 0, -1.25, 0, -1.0, 0, -0.75]
    assert drawing.changed(logits, drawing.changes_of(NOTHING, Sampling(presence_penalty=2.0))).tolist() == [0] * 8


def test_penalties_come_before_the_likeliest_is_taken() -> None:
    logits = np.array([0.0, 3.0, 2.0, 1.0], np.float32)
    assert drawing.next_token(logits, np.array([1], np.int32), Sampling(repetition_penalty=2.0), 0) == 2
    assert drawing.next_token(-logits, np.array([0], np.int32), Sampling(presence_penalty=1.5), 0) == 3


def test_an_ngram_is_not_repeated_and_a_ban_that_leaves_nothing_is_lifted() -> None:
    logits = np.array([3.0, 2.0, 1.0], np.float32)

    def after(text: list[int], size: int) -> int | None:
        return drawing.next_token(logits, np.array(text, np.int32), Sampling(no_repeat_ngram_size=size), 0)

    assert [after([], 1), after([0], 1), after([0, 1], 1), after([0, 1, 2], 1)] == [0, 1, 2, 0]
    assert [after([1, 0, 1], 2), after([1, 0, 1], 3), after([1, 0, 2, 1], 4)] == [1, 0, 0]
    assert after([2, 1, 0, 2, 1], 3) == 1


@pytest.mark.parametrize("penalty", [1e-300, 1e-39, 10.0])
def test_the_most_extreme_penalty_leaves_scores_that_can_be_drawn_from(penalty: float) -> None:
    logits = np.array([3e38, -3e38, 0.0, 1.0], np.float32)
    sampling = Sampling(temperature=1.0, repetition_penalty=penalty, presence_penalty=-2.0)
    text = np.array([0, 1, 2], np.int32)
    assert np.isfinite(drawing.changed(logits, drawing.changes_of(text, sampling))).all()
    assert drawing.next_token(logits, text, sampling, 0) == 0


def test_of_equal_scores_the_lowest_id_is_first() -> None:
    logits = np.array([1.0, 2.0, 2.0, 2.0, 0.0], np.float32)
    assert drawing.next_token(logits, NOTHING, GREEDY, 0) == 1
    assert set(drawn(logits, Sampling(temperature=1.0, top_k=2))) == {1, 2}
    assert set(drawn(logits, Sampling(temperature=1.0, top_p=0.28))) == {1}
    assert set(drawn(logits, Sampling(temperature=1.0, min_p=0.99))) == {1, 2, 3}


@pytest.mark.parametrize(("top_p", "kept"), [(0.25, 1), (0.2500001, 2), (0.5, 2), (0.75, 3), (0.7500001, 4), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_have_that_share(top_p: float, kept: int) -> None:
    assert len(drawn(np.zeros(4, np.float32), Sampling(temperature=1.0, top_p=top_p))) == kept


def test_min_p_keeps_exactly_its_share_of_the_likeliest() -> None:
    logits = np.log(np.array([1.0, 0.5, 0.25], np.float64)).astype(np.float32)
    share = float(np.exp(float(logits[1])))
    assert set(drawn(logits, Sampling(temperature=1.0, min_p=share))) == {0, 1}
    assert set(drawn(logits, Sampling(temperature=1.0, min_p=share + 1e-12))) == {0}


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=5e-324), Sampling(temperature=5.0, top_p=1e-300)])
def test_every_way_to_the_likeliest(sampling: Sampling) -> None:
    logits = row()
    assert all(drawing.next_token(logits, NOTHING, sampling, seed) == logits.argmax() for seed in range(20))


@pytest.mark.parametrize(
    ("bad", "is_drawn"), [(np.nan, False), (np.inf, False), (-np.inf, True)], ids=["nan", "inf", "minus inf"]
)
def test_scores_that_are_not_finite_give_no_token_but_one_may_be_impossible(bad: float, is_drawn: bool) -> None:
    logits = np.zeros(4, np.float32)
    logits[2] = bad
    for sampling in (GREEDY, Sampling(temperature=1.0)):
        found = {drawing.next_token(logits, NOTHING, sampling, seed) for seed in range(40)}
        assert found <= {0, 1, 3} if is_drawn else found == {None}
    assert drawing.next_token(np.full(4, -np.inf, np.float32), NOTHING, GREEDY, 0) is None


def test_a_number_depends_on_seed_and_position_alone() -> None:
    assert drawing.uniform(0, 0) == drawing.uniform(0, 0)
    numbers = {drawing.uniform(seed, position) for seed in (0, 1, 2, MAX_SEED) for position in range(100)}
    assert len(numbers) == 400
    assert 0 <= min(numbers) < 0.05 < 0.95 < max(numbers) < 1
    # Part of what a seed promises from one version to the next.
    assert [drawing.uniform(7, position) for position in range(2)] == [0.8720734548204873, 0.0828426870273763]


def test_draws_come_as_often_as_their_probabilities_say() -> None:
    logits = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05])).astype(np.float32)
    texts = 4000
    # Both ways to many draws: seeds at one place, places with one seed.
    for found in (
        [drawing.next_token(logits, NOTHING, Sampling(temperature=1.0), seed) for seed in range(texts)],
        [drawing.next_token(logits, np.zeros(n, np.int32), Sampling(temperature=1.0), 11) for n in range(texts)],
    ):
        counts = np.bincount(np.array(found, np.int64), minlength=5)
        expected = texts * np.exp(logits.astype(np.float64))
        # 18.5 is exceeded once in a thousand times at 4 degrees of freedom.
        assert ((counts - expected) ** 2 / expected).sum() < 18.5


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_is_said_from_the_highest_scores_alone_is_what_all_scores_say(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 60))
    scores = np.sort(row(size, data.draw(st.integers(0, 99))))[::-1]
    sampling = Sampling(
        temperature=data.draw(st.floats(0.05, 5.0)),
        top_k=data.draw(st.integers(0, 70)),
        top_p=data.draw(st.floats(0.01, 1.0)),
        min_p=data.draw(st.sampled_from([0.0, 0.01, 0.3])),
    )
    number = data.draw(st.floats(0, 1, exclude_max=True))
    mass = float(np.exp((scores.astype(np.float64) - scores[0]) / sampling.temperature).sum())
    # As far off as is allowed.
    mass *= 1 + data.draw(st.sampled_from([-0.99, 0.0, 0.99])) * drawing.TOLERANCE
    truth = drawing.place(scores, sampling, number)
    assert truth is not None
    known = data.draw(st.integers(1, size - 1))
    assert drawing.place(scores[:known], sampling, number, mass) in (None, truth)


def test_logprobs_are_of_the_models_own_scores() -> None:
    logits = row(50)
    found = np.frombuffer(drawing.logprobs(logits, 7, 20), drawing.LOGPROB)
    expected = torch.from_numpy(logits).double().log_softmax(-1).numpy()
    assert found["token"].tolist() == [7, *np.argsort(-logits, kind="stable")[:20].tolist()]
    np.testing.assert_array_equal(found["logprob"], expected[found["token"]].astype(np.float32))
    assert np.frombuffer(drawing.logprobs(logits, 7, 0), drawing.LOGPROB)["token"].tolist() == [7]


def test_a_text_is_what_transformers_generates(decoder: Backbone) -> None:
    prompt = [4, 9, 6]
    found = sample(None, decoder, prompt, max_new_tokens=12, logprobs=2)
    assert decoder.language_model is not None
    generating: Any = decoder.language_model
    expected = generating.generate(
        torch.tensor([prompt]), max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert found.token_ids == expected[0, 3:].tolist()
    assert (found.finish, len(found.logprobs)) == ("length", 12 * 3 * 8)
    ended = sample(None, decoder, prompt, max_new_tokens=12, end_ids={found.token_ids[4]})
    first = found.token_ids.index(found.token_ids[4])
    assert (ended.token_ids, ended.finish) == (found.token_ids[:first], "eos")


def test_a_text_of_a_seed_is_drawn_again_and_one_without_says_its_own(gpt2: Backbone) -> None:
    def text(seed: int | None) -> Any:
        return sample(None, gpt2, [4], Sampling(temperature=2.0, seed=seed), max_new_tokens=20)

    assert text(5) == text(5)
    assert text(5).token_ids != text(6).token_ids
    own = text(None)
    assert text(own.seed) == own


def test_a_text_that_does_not_fit_is_refused(gpt2: Backbone) -> None:
    for prompt, new in (([], 1), ([4], 0), ([4] * 40, 9)):
        with pytest.raises(InvalidConfig, match="together at most 48"):
            sample(None, gpt2, prompt, max_new_tokens=new)


def test_a_model_whose_scores_are_not_finite_writes_nothing(make_gpt2: Any) -> None:
    model = make_gpt2()
    torch.nn.init.constant_(model.transformer.wte.weight, float("nan"))
    with pytest.raises(FailedPrecondition, match="not finite"):
        sample(None, from_language_model(model, name="tiny"), [4], max_new_tokens=1)
