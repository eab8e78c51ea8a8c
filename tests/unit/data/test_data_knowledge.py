"""The classes of SliCK, and when an answer counts as right."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flows.data.knowledge import Knowledge, classify, is_right, tag, without_answer
from flows.records import Item, KnowledgeTag

ANSWERS = st.lists(st.booleans(), max_size=12)
RANK = {"unknown": 0, "weakly_known": 1, "maybe_known": 2, "highly_known": 3}


@pytest.mark.parametrize(
    ("greedy", "sampled", "known"),
    [
        ([True, True, True], [], "highly_known"),
        ([True, True, True], [False, False], "highly_known"),
        ([True, False, False], [], "maybe_known"),
        ([True, False], [False], "maybe_known"),
        ([False, False], [False, True, False], "weakly_known"),
        ([False, False], [True, True], "weakly_known"),
        ([False, False], [False, False], "unknown"),
        ([True], [], "highly_known"),
    ],
)
def test_the_class_follows_from_greedy_and_sampled_answers(greedy: list[bool], sampled: list[bool], known: str) -> None:
    assert classify(greedy, sampled) == known


@given(ANSWERS.filter(bool), ANSWERS.filter(bool))
@example([False], [False])
def test_the_classes_are_the_papers_in_terms_of_the_two_shares(greedy: list[bool], sampled: list[bool]) -> None:
    found = tag("q", greedy, sampled)
    assert found.p_greedy is not None
    assert found.p_sampled is not None
    conditions = {
        "highly_known": found.p_greedy == 1,
        "maybe_known": 0 < found.p_greedy < 1,
        "weakly_known": found.p_greedy == 0 and found.p_sampled > 0,
        "unknown": found.p_greedy == 0 and found.p_sampled == 0,
    }
    assert [name for name, holds in conditions.items() if holds] == [found.known]


@given(ANSWERS.filter(bool), ANSWERS.filter(bool), st.data())
def test_one_more_right_answer_never_means_less_known(greedy: list[bool], sampled: list[bool], data: st.DataObject) -> None:
    before = RANK[classify(greedy, sampled)]
    place = data.draw(st.integers(0, len(greedy) + len(sampled) - 1))
    together = [*greedy, *sampled]
    together[place] = True
    assert RANK[classify(together[: len(greedy)], together[len(greedy) :])] >= before


@given(ANSWERS.filter(any), ANSWERS)
def test_sampled_answers_decide_nothing_once_a_greedy_one_is_right(greedy: list[bool], sampled: list[bool]) -> None:
    assert classify(greedy, sampled) == classify(greedy, [])


@pytest.mark.parametrize(("greedy", "sampled"), [([], []), ([], [True]), ([False], [])])
def test_a_class_without_the_answers_that_decide_it_is_refused(greedy: list[bool], sampled: list[bool]) -> None:
    with pytest.raises(ValueError, match="needs greedy answers"):
        classify(greedy, sampled)


def test_a_share_that_was_not_asked_for_is_missing_not_zero() -> None:
    assert tag("q", [True, False], ()) == KnowledgeTag("q", "maybe_known", 0.5, None)
    nothing = Item("u", "Who?", ("unanswerable",), "c", answerable=False)
    assert without_answer(nothing) == KnowledgeTag("u", "unanswerable", None, None)


@pytest.mark.parametrize(
    ("answer", "references", "right"),
    [
        ("Paris", ["Paris"], True),
        ("paris.", ["Paris"], True),
        ("It is Paris, I think.", ["Lyon", "Paris"], True),
        ("The Rhine", ["Rhine"], True),
        ("Rhine", ["the Rhine"], True),
        ("Parisian food", ["Paris"], False),
        ("It is not Paris.", ["Paris"], False),
        ("It isn't Paris", ["Paris"], False),
        ("Not Lyon but Paris", ["Paris"], True),
        ("Paris", ["Paris in spring"], False),
        ("Hepatitis B", ["Hepatitis A"], False),
        ("hepatitis a", ["Hepatitis A"], True),
        ("Vitamin C deficiency", ["Vitamin A deficiency"], False),
        ("It is a Rhine boat", ["A Rhine boat"], True),
        ("92.3", ["3"], False),
        ("an accuracy of 92.3 %", ["92.3"], True),
        ("1,200 people", ["1200"], True),
        ("1,200 people", ["200"], False),
        ("-3 degrees", ["3"], False),
        ("-3 degrees", ["-3"], True),
        ("Yes, it does.", ["yes"], True),
        ("I would say yes", ["yes"], False),
        ("No", ["yes"], False),
        ("There is no such river", ["no"], False),
        ("A", ["a"], True),
        ("", ["Paris"], False),
        ("", [""], True),
        (None, ["Paris"], False),
        ("Paris", [], False),
        ("+", ["+"], True),
        ("+", ["-"], False),
        ("東京です", ["東京"], True),
    ],
)
def test_an_answer_is_right_when_it_says_what_a_reference_says(answer: str | None, references: list[str], right: bool) -> None:
    assert is_right(answer, references) is right


@given(st.text(alphabet=st.characters(categories=["Lu", "Ll", "Nd", "Zs", "Po"]), min_size=1))
def test_a_reference_is_a_right_answer_in_any_case(reference: str) -> None:
    assert is_right(reference, [reference])
    assert is_right(f"  {reference} ", [reference])


def test_items_without_an_answer_are_kept_and_measured_whatever_the_classes() -> None:
    classes = {"a": "unknown", "b": "maybe_known", "c": "unanswerable"}
    tags = tuple(KnowledgeTag(item, known, None, None) for item, known in classes.items())
    known = Knowledge("small", tags, ("maybe_known", "highly_known"), ("highly_known",), 9, 9, 9, None)
    assert [item for item in ("a", "b", "c", "never tagged") if known.keeps(item)] == ["b", "c"]
    assert [item for item in ("a", "b", "c") if known.measures(item)] == ["c"]
    assert known.counts == {"highly_known": 0, "maybe_known": 1, "weakly_known": 0, "unknown": 1, "unanswerable": 1}
