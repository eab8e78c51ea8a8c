"""The rule reference/v1: truth table, what it must never do, and that more overlap never hurts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.judge import criteria, reference_rule
from services.judge.domain import Case, Draft, Judgement
from services.judge.reference_judge import ReferenceJudge
from services.judge.reference_rule import Numbers, Signals, YesNo
from services.judge.reference_text import overlap, read


class ConstantEncoder:
    """Behind the encoder's port: the same similarity for all."""

    name = reference_rule.ENCODER

    def __init__(self, similarity: float) -> None:
        self.similarity = similarity

    async def similarities(self, text: str, others: Sequence[str]) -> tuple[float, ...]:
        return (self.similarity,) * len(others)


async def judged(criterion: str, question: str, answer: str, references: Sequence[str], similarity: float = 0.0) -> Judgement:
    judge = ReferenceJudge(ConstantEncoder(similarity), criteria.shipped(), ("Nicht beantwortbar",))
    return await judge.judge(judge.freeze(Draft(criterion)), Case(question, answer, tuple(references)), 1, None)


async def scores(question: str, answer: str, *references: str, similarity: float = 0.0) -> tuple[float | None, float | None]:
    accuracy = await judged("accuracy", question, answer, references, similarity)
    completeness = await judged("completeness", question, answer, references, similarity)
    return accuracy.runs[0].score, completeness.runs[0].score


@pytest.mark.parametrize(
    ("question", "answer", "reference", "accuracy", "completeness"),
    [
        # equal after normalisation
        ("", "Paris", "paris.", 5, 5),
        ("", "The  Beatles!", "beatles", 5, 5),
        ("", "A", "A", 5, 5),
        ("", "A", "B", 1, 1),
        # one within the other
        ("", "The capital is Paris.", "Paris", 5, 5),
        ("", "Paris", "Paris, France", 5, 3),
        ("", "BERT", "BERT, ELMo, GPT", 5, 2),
        ("", "A long reply about many other things in that country which in the end speaks of Paris", "Paris", 4, 5),
        # nothing in common, or only words that say nothing
        ("", "London", "Paris", 1, 1),
        ("", "", "Paris", 1, 1),
        ("", "of", "the use of attention", 1, 1),
        # numbers
        ("", "The study included 120 patients", "The study included 150 patients", 1, 1),
        ("", "3.5", "35", 1, 1),
        ("", "-5", "5", 1, 1),
        ("", "1,200 patients", "1200 patients", 5, 5),
        ("", "two layers", "2 layers", 5, 5),
        ("", "3.50", "3.5", 5, 5),
        ("", "GPT-3", "GPT-2", 1, 1),
        ("", "a 2-layer network with 5% dropout", "two layer network, 5 % dropout", 4, 5),
        ("", "120 patients in 2 arms", "150 patients in 2 arms", 3, 3),
        ("", "patients in arms", "150 patients in arms", 5, 2),
        # yes and no
        ("Is it so?", "No", "yes", 1, 1),
        ("Is it so?", "Yes, it is", "Yes", 5, 5),
        ("Is it so?", "Yes", "Yes, because the sample is large", 5, 3),
        ("Is it so?", "No.", "Yes, because the sample is large", 1, 1),
        ("Is it so?", "Yes, since they said it", "Yes, because the sample is large", 3, 3),
        ("What was seen?", "No effect was seen", "no effect", 5, 5),
        # negation
        ("", "It is not BERT", "BERT", 1, 1),
        ("", "BERT", "not BERT", 1, 1),
        ("", "The drug works in adults", "The drug does not work in adults", 1, 1),
        # abstention
        ("", "I don't know.", "unanswerable", 5, 5),
        ("", "Unanswerable", "The passages do not say.", 5, 5),
        ("", "Sorry, I cannot find this. The passages do not mention any layers.", "unanswerable", 5, 5),
        ("", "nicht beantwortbar.", "unanswerable", 5, 5),
        ("", "I don't know.", "Paris", 1, 1),
        ("", "Paris", "unanswerable", 1, 1),
        ("", "I don't know. It may be Paris.", "Paris", 4, 5),
    ],
)
async def test_the_rule_as_a_table(question: str, answer: str, reference: str, accuracy: int, completeness: int) -> None:
    assert await scores(question, answer, reference) == (accuracy, completeness)


@pytest.mark.parametrize(
    ("question", "answer", "reference"),
    [
        ("", "The study included 120 patients", "The study included 150 patients"),
        ("Is it so?", "No, it is certainly not so", "Yes, it is certainly so"),
        ("", "I do not know the answer", "The study included 150 patients"),
        ("", "The study included 150 patients", "unanswerable"),
    ],
)
async def test_what_contradicts_is_one_however_similar_the_embeddings_are(question: str, answer: str, reference: str) -> None:
    assert await scores(question, answer, reference, similarity=1.0) == (1, 1)


async def test_similarity_counts_for_sentences_only_and_never_gives_the_highest_score() -> None:
    assert await scores("", "people rated all outputs by hand", "human raters judged every system", similarity=0.99) == (4, 4)
    assert await scores("", "London", "Paris", similarity=0.99) == (1, 1)


async def test_the_best_of_several_references_counts_for_scores_and_metrics() -> None:
    assert await scores("", "Paris", "London", "Paris", "unanswerable") == (5, 5)
    assert await scores("", "unanswerable", "London", "unanswerable") == (5, 5)
    metrics = (await judged("accuracy", "", "Paris", ["London", "in Paris"])).metrics
    assert metrics["token_recall"] == 0.5
    assert metrics["containment"] == 0.0
    assert metrics["containment_in_reference"] == 1.0


async def test_an_empty_answer_has_no_similarity_rather_than_zero() -> None:
    assert "embedding_similarity" not in (await judged("accuracy", "", " ", ["Paris"], 0.4)).metrics
    assert (await judged("accuracy", "", "x", ["Paris"], 0.4)).metrics["embedding_similarity"] == 0.4
    assert (await judged("accuracy", "", "x", ["Paris"], -0.4)).metrics["embedding_similarity"] == 0.0


def test_token_f1_follows_squad() -> None:
    shared = overlap(read("the cat sat on a mat", ()), read("A cat sat there, the cat!", ()))
    # answer: cat sat on mat; reference: cat sat there cat
    assert (shared.precision, shared.recall, shared.f1) == (0.5, 0.5, 0.5)


WORDS = st.lists(
    st.sampled_from(["paris", "the", "of", "not", "two", "7", "3.5", "yes", "no", "bert", "works", "unknown"]), max_size=8
).map(" ".join)


@given(WORDS, WORDS)
def test_overlap_is_symmetric_and_between_zero_and_one(one: str, other: str) -> None:
    forth, back = overlap(read(one, ()), read(other, ())), overlap(read(other, ()), read(one, ()))
    assert (forth.precision, forth.recall, forth.equal) == (back.recall, back.precision, back.equal)
    assert forth.f1 == pytest.approx(back.f1)
    assert 0 <= forth.f1 <= 1


@given(WORDS, WORDS, WORDS)
async def test_another_acceptable_reference_never_lowers_a_score(answer: str, reference: str, more: str) -> None:
    few, many = await scores("", answer, reference), await scores("", answer, reference, more)
    assert all(before is not None and after is not None and after >= before for before, after in zip(few, many, strict=True))


SIGNALS = st.builds(
    Signals,
    answered=st.booleans(),
    abstains=st.booleans(),
    should_abstain=st.booleans(),
    opposite=st.booleans(),
    numbers=st.sampled_from(Numbers),
    yes_no=st.sampled_from(YesNo),
    equal=st.booleans(),
    contains_reference=st.booleans(),
    in_reference=st.booleans(),
    precision=st.floats(0, 1),
    recall=st.floats(0, 1),
    similarity=st.none() | st.floats(-1, 1),
)


@given(SIGNALS, st.floats(0, 1), st.floats(0, 1), st.floats(0, 2))
def test_more_overlap_or_similarity_never_lowers_a_score(signals: Signals, precision: float, recall: float, similarity: float) -> None:
    better = replace(
        signals,
        precision=max(signals.precision, precision),
        recall=max(signals.recall, recall),
        similarity=None if signals.similarity is None else min(1.0, signals.similarity + similarity),
        equal=True,
    )
    for rule in (reference_rule.accuracy, reference_rule.completeness):
        assert 1 <= rule(signals) <= rule(replace(better, equal=signals.equal)) <= rule(better) <= 5


@given(SIGNALS)
def test_a_contradiction_is_always_the_lowest_score(signals: Signals) -> None:
    honest = replace(signals, abstains=False, should_abstain=False)
    for wrong in (replace(honest, opposite=True), replace(honest, numbers=Numbers.DIFFERENT), replace(honest, should_abstain=True)):
        assert reference_rule.accuracy(wrong) == reference_rule.completeness(wrong) == 1
