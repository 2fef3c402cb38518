"""Scores of generated text: known answers by hand, agreement with reference implementations, and what is refused."""

import importlib.util
import math
import random
import shutil
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamix.errors import InvalidConfig, InvalidData
from adamix.generation.metrics import METRICS, score_generation
from adamix.generation.metrics.ngrams import cider, nist, rouge_l
from adamix.generation.metrics.preparation import penn_words, split_at_symbols, words_13a

WITHOUT_JAVA = tuple(name for name in METRICS if name != "meteor")
SENTENCES = [
    "the mill is a cheap pub near the river",
    "there is a quiet tea room called the heron in the old town",
    "families like the golden spoon for its greek food",
]
needs_meteor = pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("pycocoevalcap") is None,
    reason="METEOR needs Java and the package pycocoevalcap",
)

word = st.sampled_from(["a", "b", "c", "d", "e", "f"])
text = st.lists(word, min_size=1, max_size=9)
rows = st.lists(st.tuples(text, st.lists(text, min_size=1, max_size=3)), min_size=1, max_size=5)


@pytest.mark.parametrize("style", ["e2e", "webnlg"])
def test_what_is_a_reference_itself_has_the_best_scores(style: str) -> None:
    scores = score_generation(SENTENCES, [[s, "something else entirely"] for s in SENTENCES], WITHOUT_JAVA, style=style)
    assert list(scores) == list(WITHOUT_JAVA)
    assert {name: scores[name] for name in ("bleu", "rouge_l", "chrf")} == pytest.approx(
        {"bleu": 100, "rouge_l": 100, "chrf": 100}
    )
    assert scores["ter"] == 0
    single = score_generation(SENTENCES, [[s] for s in SENTENCES], ["cider"], style=style)
    assert single["cider"] == pytest.approx(10)


def test_bleu_by_hand() -> None:
    """7 words against 8: n-gram hits 6/7, 4/6, 2/5, 1/4; brevity penalty exp(1 - 8/7)."""
    scores = score_generation(["The cat sat on red mats today"], [["the cat sat on the mats today ."]], ["bleu"])
    # 1-grams: the cat sat on mats today; 2: the-cat cat-sat sat-on mats-today; 3: the-cat-sat cat-sat-on; 4: all four.
    by_hand = 100 * math.exp(1 - 8 / 7) * (6 / 7 * 4 / 6 * 2 / 5 * 1 / 4) ** 0.25
    assert scores["bleu"] == pytest.approx(by_hand)


def test_nist_by_hand() -> None:
    """References `a b` and `a c`: counts of 4 words, a 2, b 1, c 1, `a b` 1, `a c` 1."""
    references = [[["a", "b"], ["a", "c"]]]
    # Matched a (1 bit) and c (2 bits) of 2 words, and `a c` (log2(2 / 1) = 1 bit) of 1 pair; lengths are equal.
    assert nist([["a", "c"]], references) == pytest.approx((1 + 2) / 2 + 1)
    # 2 words where the references have 3 on average: the penalty is one half by definition.
    longer = [[["a", "b", "x"], ["a", "c", "x"]]]
    bits = math.log2(6 / 2) + math.log2(6 / 1)
    assert nist([["a", "c"]], longer) == pytest.approx(0.5 * (bits / 2 + math.log2(2 / 1)))


def test_nist_clips_by_all_references_together() -> None:
    """The E2E scripts (mteval) may match `b` in one reference and `c` in the other; NLTK takes the best single one."""
    from nltk.translate.nist_score import corpus_nist

    references = [[["a", "b", "x", "y", "z"], ["a", "c", "u", "v", "w"]]]
    hypotheses = [["a", "b", "c", "d", "e"]]
    assert nist(hypotheses, references) > corpus_nist(references, hypotheses, 5)


def test_rouge_l_by_hand() -> None:
    """`a c d` is common to both: precision 3/4 and recall 3/5, beta 1.2."""
    by_hand = (1 + 1.44) * 0.75 * 0.6 / (0.6 + 1.44 * 0.75)
    assert rouge_l([["a", "c", "d", "q"]], [[["a", "b", "c", "d", "e"], ["z"]]]) == pytest.approx(by_hand)


def test_ter_takes_the_nearest_reference_and_averages_rows() -> None:
    predictions = ["a b c d", "a b c d"]
    references = [["a b c d e f g h", "a b x d"], ["c d a b"]]  # 1 of 4 words; one shift of a block, of 4 words
    assert score_generation(predictions, references, ["ter"], style="webnlg")["ter"] == pytest.approx(0.25)


@settings(max_examples=20)
@given(rows)
def test_ter_passes_over_no_reference_that_is_nearer(data: list[tuple[list[str], list[list[str]]]]) -> None:
    from sacrebleu.metrics.ter import TER

    predictions = [" ".join(words) for words, _ in data]
    references = [[" ".join(words) for words in texts] for _, texts in data]
    by_hand = [
        min(TER().sentence_score(prediction, [text]).score for text in texts)
        for prediction, texts in zip(predictions, references, strict=True)
    ]
    expected = sum(by_hand) / len(by_hand) / 100
    assert score_generation(predictions, references, ["ter"], style="webnlg")["ter"] == pytest.approx(expected)


def test_more_edits_than_words_is_a_rate_over_one() -> None:
    assert score_generation(["a b c"], [["z"]], ["ter"])["ter"] == pytest.approx(3)


@settings(max_examples=40)
@given(rows)
def test_nist_of_single_references_is_that_of_nltk(data: list[tuple[list[str], list[list[str]]]]) -> None:
    from nltk.translate.nist_score import corpus_nist

    hypotheses = [hypothesis for hypothesis, _ in data]
    references = [texts[:1] for _, texts in data]
    if max(map(len, hypotheses)) >= 5:  # NLTK divides by the number of 5-grams
        assert nist(hypotheses, references) == pytest.approx(corpus_nist(references, hypotheses, 5))


@settings(max_examples=40)
@given(rows)
def test_rouge_l_and_cider_are_those_of_coco(data: list[tuple[list[str], list[list[str]]]]) -> None:
    coco_rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    coco_cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    hypotheses = {row: [" ".join(hypothesis)] for row, (hypothesis, _) in enumerate(data)}
    references = {row: [" ".join(words) for words in texts] for row, (_, texts) in enumerate(data)}
    ours = [hypothesis for hypothesis, _ in data], [texts for _, texts in data]
    assert rouge_l(*ours) == pytest.approx(coco_rouge.compute_score(references, hypotheses)[0])
    assert cider(*ours) == pytest.approx(coco_cider.compute_score(references, hypotheses)[0], abs=1e-12)


@settings(max_examples=8)
@given(rows, st.randoms(use_true_random=False))
def test_order_of_references_and_rows_is_irrelevant(
    data: list[tuple[list[str], list[list[str]]]], dice: random.Random
) -> None:
    pairs = [(" ".join(hypothesis), [" ".join(words) for words in texts]) for hypothesis, texts in data]
    other = [(hypothesis, dice.sample(texts, len(texts))) for hypothesis, texts in dice.sample(pairs, len(pairs))]
    first, second = (
        score_generation([h for h, _ in part], [r for _, r in part], WITHOUT_JAVA) for part in (pairs, other)
    )
    assert first == pytest.approx(second)


def test_empty_predictions_score_nothing() -> None:
    references = [[s] for s in SENTENCES]
    nothing = score_generation(["", " ", "\n"], references, WITHOUT_JAVA)
    assert nothing == {"bleu": 0, "nist": 0, "rouge_l": 0, "cider": 0, "ter": 1, "chrf": 0}
    one = score_generation([*SENTENCES[:2], ""], references, WITHOUT_JAVA)
    assert one["ter"] == pytest.approx(1 / 3)
    assert 0 < one["bleu"] < 100


def test_references_of_symbols_alone_are_no_words() -> None:
    scores = score_generation(["a b", "c"], [["..."], ["c"]], WITHOUT_JAVA)
    assert all(math.isfinite(score) for score in scores.values())
    assert scores["rouge_l"] == pytest.approx(50)


def test_a_single_row_has_no_cider() -> None:
    assert score_generation(["a b c"], [["a b c"]], ["cider"]) == {"cider": 0}


def test_case_counts_for_chrf_of_e2e_alone() -> None:
    upper = [s.upper() for s in SENTENCES]
    references = [[s] for s in SENTENCES]
    for style, chrf in (("e2e", 0), ("webnlg", 100)):
        scores = score_generation(upper, references, WITHOUT_JAVA, style=style)
        assert scores["bleu"] == pytest.approx(100)
        assert scores["chrf"] == pytest.approx(chrf, abs=20)


def test_webnlg_reads_six_references_of_a_row() -> None:
    references = [["x y z"] * 6 + [s] for s in SENTENCES]
    assert score_generation(SENTENCES, references, ["bleu"], style="webnlg")["bleu"] < 10
    assert score_generation(SENTENCES, references, ["bleu"], style="e2e")["bleu"] == pytest.approx(100)


def test_words() -> None:
    sentence = "It isn't a 5-star pub (less than £20.50), but it's near Zoë's; 10:30.No more!"
    assert penn_words(sentence) == (
        [
            "it",
            "is",
            "n't",
            "a",
            "5-star",
            "pub",
            "(",
            "less",
            "than",
            "£",
            "20.50",
            ")",
            "but",
            "it",
            "'s",
            "near",
            "zoë",
            "'s",
            "10:30.no",
            "more",
        ]
    )
    assert words_13a("A 5-star pub: £20.50.") == ["a", "5", "-", "star", "pub", ":", "£20.50", "."]
    assert split_at_symbols("The Mill's 2.5 km-run") == "The Mill ' s 2 . 5 km - run"


@needs_meteor
@pytest.mark.slow
def test_meteor_is_what_the_program_answers_on_files_of_equally_many_references() -> None:
    """A synonym, letters beyond ASCII, an empty prediction; the number is from a call of the program by hand."""
    predictions = ["The café is inexpensive.", "", "it lies by the river"]
    references = [["the café is cheap", "no"], ["silence"], ["It lies by the river!", "unlike"]]
    assert score_generation(predictions, references, ["meteor"])["meteor"] == pytest.approx(83.88746803, abs=1e-6)


def test_without_java_meteor_is_left_out_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("adamix.generation.metrics.meteor.find_program", lambda: "meteor.jar")
    said: list[str] = []
    scores = score_generation(SENTENCES, [[s] for s in SENTENCES], on_warning=said.append)
    assert list(scores) == ["bleu", "nist", "rouge_l", "cider"]
    assert len(said) == 1
    assert "no java" in said[0]
    with pytest.warns(UserWarning, match="METEOR is left out"):
        assert score_generation(SENTENCES, [[s] for s in SENTENCES], ["meteor"]) == {}


def test_without_the_package_the_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said: list[str] = []
    assert score_generation(["a"], [["a"]], ["meteor"], on_warning=said.append) == {}
    assert "pip install --no-deps pycocoevalcap==1.2" in said[0]


@pytest.mark.parametrize(
    ("script", "sentence"),
    [("echo boom >&2; exit 1", "said 'boom'"), ("echo 'Final score: soon'", "failed"), ("sleep 5", "took over")],
)
def test_a_program_that_fails_is_a_warning(monkeypatch: pytest.MonkeyPatch, script: str, sentence: str) -> None:
    from adamix.generation.metrics import meteor

    monkeypatch.setattr(meteor, "find_program", lambda: "meteor.jar")
    monkeypatch.setattr(meteor.shutil, "which", lambda name: "java")
    monkeypatch.setattr(meteor, "START_S", 0.2)
    monkeypatch.setattr(meteor, "ROW_S", 0.0)
    monkeypatch.setattr(meteor, "command_line", lambda *_: ["/bin/sh", "-c", script])
    said: list[str] = []
    assert score_generation(["a"], [["a"]], ["meteor"], on_warning=said.append) == {}
    assert sentence in said[0]


def test_refusals() -> None:
    with pytest.raises(InvalidConfig, match="'bleurt' is not one of bleu, nist"):
        score_generation(["a"], [["a"]], ["bleurt"])
    with pytest.raises(InvalidConfig, match="'dart' is not one of e2e, webnlg"):
        score_generation(["a"], [["a"]], style="dart")
    with pytest.raises(InvalidData, match="2 predictions, but references for 1"):
        score_generation(["a", "b"], [["a"]])
    with pytest.raises(InvalidData, match="no predictions"):
        score_generation([], [])
    with pytest.raises(InvalidData, match="row 2 has no list of references"):
        score_generation(["a", "b"], [["a"], []])
    with pytest.raises(InvalidData, match="row 1 has no list of references"):
        score_generation(["a"], ["a"])
    with pytest.raises(InvalidData, match="row 1 has a prediction or reference that is not a text"):
        score_generation(["a"], [[None]])  # type: ignore[list-item]


def test_scoring_warns_about_nothing_else() -> None:
    """sacrebleu remarks on texts that look tokenised; such remarks are not the caller's business."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_generation(["a ."] * 120, [["a ."]] * 120, ["bleu", "chrf"])
