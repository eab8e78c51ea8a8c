"""What is read from a judge model's reply."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.judge.domain import Missing
from services.judge.reply import expected_score, find_score, numbered_steps, why_missing


def value(reply: str, low: int = 1, high: int = 5) -> float | None:
    score = find_score(reply, "accuracy", low, high)
    return None if score is None else score.value


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("4", 4.0),
        (" 4.\n", 4.0),
        ("4.5", 4.5),
        ("4/5", 4.0),
        ("4 out of 5", 4.0),
        ("**4**", 4.0),
        ("Score: 4", 4.0),
        ("- Accuracy: 4/5", 4.0),
        ("Accuracy (1-5): 4", 4.0),
        ("**Score:** 3", 3.0),
        ("The answer names the right city.\nFinal score: 2", 2.0),
        ("Score: 4\nBecause it is right.", 4.0),
        ("Score: 4\nAccuracy: 4", 4.0),
        ('{"score": 3, "reason": "partly"}', 3.0),
        ('```json\n{"accuracy": 5}\n```', 5.0),
        ("<think>maybe a 2? Score: 2</think>\n4", 4.0),
    ],
)
def test_a_score_is_read_in_every_form_that_names_it(reply: str, score: float) -> None:
    assert value(reply) == score


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I would give it a 4.",
        "The answer is good.",
        "9",
        "0",
        "-3",
        "Score: 6",
        "4/10",
        "Score: 40%",
        "4-5",
        "Score: 4-5",
        "4 5",
        "4,5",
        "1e1",
        "Score: 4\nScore: 2",
        "Score: 4\nAccuracy: 9",
        "Question 4: yes",
        "<think>Score: 4",
        "four",
        "\u0664",
    ],
)
def test_a_reply_without_a_score_is_missing_never_zero_and_never_clipped(reply: str) -> None:
    assert value(reply) is None


@given(st.text(max_size=200), st.integers(0, 50), st.integers(1, 50))
def test_whatever_is_read_lies_on_the_scale(reply: str, low: int, width: int) -> None:
    score = find_score(reply, "accuracy", low, low + width)
    assert score is None or low <= score.value <= low + width


@given(st.integers(-200, 200))
def test_a_bare_number_is_read_exactly_when_it_is_on_the_scale(number: int) -> None:
    assert value(str(number), 0, 100) == (float(number) if 0 <= number <= 100 else None)


@pytest.mark.parametrize(
    ("reply", "cut", "reason"),
    [
        ("I'm sorry, but I can't help with that.", False, Missing.REFUSED),
        ("I cannot evaluate this answer.", True, Missing.REFUSED),
        ("As an AI, I have no opinion.", False, Missing.REFUSED),
        ("The answer says that", True, Missing.TRUNCATED),
        ("The answer says that it is good.", False, Missing.UNPARSED),
        ("I cannot see a mistake in this.", False, Missing.UNPARSED),
        ("", False, Missing.UNPARSED),
    ],
)
def test_refusals_cut_replies_and_prose_are_kept_apart(reply: str, cut: bool, reason: Missing) -> None:
    assert why_missing(reply, cut) is reason


def test_steps_are_read_from_a_numbered_list_with_what_belongs_to_them() -> None:
    reply = (
        "Here are the steps:\n\n1. Read the question.\n2) **Compare** the answer\n   with the references:\n   - names\n"
        "\nStep 3: Give a score.\n\nDone."
    )
    assert numbered_steps(reply) == ("Read the question.", "Compare the answer with the references: - names", "Give a score.")


@pytest.mark.parametrize("reply", ["", "Read it and give a score.", "- read\n- score", "2. Second\n3. Third", "1. One\n3. Three"])
def test_a_list_that_does_not_count_from_one_holds_no_steps(reply: str) -> None:
    assert numbered_steps(reply) == ()


def test_all_tokenisations_of_a_score_add_up_and_the_rest_is_off_the_scale() -> None:
    alternatives = [
        ("4", math.log(0.4)),
        (" 4", math.log(0.1)),
        ("\u01205", math.log(0.25)),
        ("The", math.log(0.15)),
        ("9", math.log(0.05)),
    ]
    score, off_scale = expected_score(alternatives, 1, 5)
    assert score == pytest.approx((0.5 * 4 + 0.25 * 5) / 0.75)
    assert off_scale == pytest.approx(0.25)


def test_no_mass_on_the_scale_is_no_score() -> None:
    assert expected_score([("The", math.log(0.9)), ("9", -9999.0)], 1, 5) == (None, 1.0)


@pytest.mark.parametrize("alternatives", [[("4", math.nan)], [("4", 0.5)], [("4", -0.1), ("5", -0.1)]])
def test_numbers_that_are_no_probabilities_are_refused(alternatives: list[tuple[str, float]]) -> None:
    with pytest.raises(ValueError, match="probabilit"):
        expected_score(alternatives, 1, 5)


@given(st.lists(st.floats(0.001, 1.0), min_size=5, max_size=5), st.integers(0, 3))
def test_moving_mass_to_a_higher_score_raises_the_expected_score(weights: list[float], index: int) -> None:
    total = sum(weights) * 1.1
    masses = [weight / total for weight in weights]
    moved = list(masses)
    moved[index], moved[index + 1] = moved[index] / 2, moved[index + 1] + moved[index] / 2
    before, after = (expected_score([(str(s), math.log(p)) for s, p in enumerate(each, 1)], 1, 5) for each in (masses, moved))
    assert before[0] is not None
    assert after[0] is not None
    assert 1 <= before[0] < after[0] <= 5
    assert before[1] == pytest.approx(after[1])
