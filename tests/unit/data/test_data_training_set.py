"""Training examples in the four contexts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from flows.data.quotes import divided
from flows.data.training_set import TrainingContext, TrainingSet, trainable, training_set
from flows.errors import TrialError, UserError
from flows.records import Evidence, Example, Hit, Item, Passage

PASSAGES = {f"d#{n}": Passage(f"d#{n}", "d", f"Text {n}.") for n in range(60)}
ITEMS = [Item(f"q{n}", f"Question {n}?", (f"answer {n}", "other"), f"c{n}") for n in range(400)]
UNANSWERABLE = Item("u", "Unknown?", ("unanswerable",), "c", answerable=False)
GOLD: Mapping[str, Sequence[str]] = {item.id: ("d#1", "d#2") for item in ITEMS}
RETRIEVED = (5, 1, 6, 7, 8, 9, 10)
HITS = {item.id: [Hit(item.id, f"d#{n}", rank, 1 / rank) for rank, n in enumerate(RETRIEVED, 1)] for item in [*ITEMS, UNANSWERABLE]}


def build(
    kind: Any, items: Sequence[Item] = ITEMS, *, seed: int = 1, hits: Any = HITS, gold: Any = GOLD, parents: Any = None, **settings: Any
) -> TrainingSet:
    context = TrainingContext(kind, **settings)
    return training_set(items, context, passages=PASSAGES, gold=gold, hits=hits, abstention="I cannot tell.", seed=seed, parents=parents)


def test_context_none_shows_the_question_alone() -> None:
    assert build("none", ITEMS[:1], hits={}, gold={}).examples == (Example("q0", "Question 0?", (), "answer 0", None),)


def test_context_gold_shows_the_gold_passages_in_their_order() -> None:
    assert build("gold", ITEMS[:1], hits={}).examples == (Example("q0", "Question 0?", ("d#1", "d#2"), "answer 0", gold_shown=True),)
    assert build("gold", ITEMS[:1], max_gold=1).examples[0].passages == ("d#1",)


def test_context_retrieved_shows_the_passages_as_served() -> None:
    (example,) = build("retrieved", ITEMS[:1]).examples
    assert example == Example("q0", "Question 0?", ("d#5", "d#1", "d#6", "d#7", "d#8", "d#9", "d#10"), "answer 0", gold_shown=True)
    assert build("retrieved", ITEMS[:1], gold={}).examples[0].gold_shown is False


def test_retrieved_passages_come_by_rank_whatever_the_order_of_the_table() -> None:
    shuffled = {"q0": list(reversed(HITS["q0"]))}
    assert build("retrieved", ITEMS[:1], hits=shuffled) == build("retrieved", ITEMS[:1])


def test_raft_shows_gold_with_its_probability_and_always_as_many_passages() -> None:
    examples = build("raft", gold_probability=0.8, distractors=3).examples
    shown = [example for example in examples if example.gold_shown]
    assert 0.72 < len(shown) / len(examples) < 0.88
    assert {len(example.passages) for example in examples} == {5}
    assert all(set(example.passages) == {"d#1", "d#2", "d#5", "d#6", "d#7"} for example in shown)
    assert all(set(example.passages) == {"d#5", "d#6", "d#7", "d#8", "d#9"} for example in examples if not example.gold_shown)


def test_raft_puts_gold_at_every_position() -> None:
    examples = build("raft", gold_probability=1, max_gold=1).examples
    counts = [sum(example.passages[place] == "d#1" for example in examples) for place in range(4)]
    assert sum(counts) == len(examples)
    assert all(60 < count < 140 for count in counts)


@pytest.mark.parametrize(("setting", "answers"), [("abstain", {"I cannot tell."}), ("answer", {f"answer {n}" for n in range(400)})])
def test_without_gold_raft_abstains_or_answers_as_the_setting_says(setting: str, answers: set[str]) -> None:
    def answered(probability: float) -> set[str]:
        return {example.answer for example in build("raft", gold_probability=probability, without_gold=setting).examples}

    assert answered(0) == answers
    assert answered(1) == {f"answer {n}" for n in range(400)}


def test_random_distractors_are_never_gold_nor_twice_the_same() -> None:
    examples = build("raft", distractor_source="random", gold_probability=0.5, distractors=4, hits={}).examples
    for example in examples:
        assert len(set(example.passages)) == len(example.passages) == 6
        assert {"d#1", "d#2"}.issubset(example.passages) is example.gold_shown
    assert len({name for example in examples for name in example.passages}) > 50


# Three passages a parent: d#0 to d#2 are of s0, which holds all gold, d#3 to d#5 of s1, and so on.
PARENTS = {name: f"s{number // 3}" for number, name in enumerate(PASSAGES)}


def shown(example: Example) -> list[str]:
    return list(dict.fromkeys(PARENTS[name] for name in example.passages))


@pytest.mark.parametrize("source", ["retrieved", "random"])
def test_no_distractor_shares_its_parent_with_gold_and_as_many_parents_are_shown_in_every_example(source: str) -> None:
    # With parents, what is retrieved must go deeper: d#5 to d#8 are of two parents only.
    deep = {item.id: [Hit(item.id, f"d#{n}", rank, 1 / rank) for rank, n in enumerate((1, 0, *range(5, 30)), 1)] for item in ITEMS}
    made = build("raft", hits=deep, distractor_source=source, distractors=3, gold_probability=0.5, parents=PARENTS)
    assert made.short_count == 0
    assert {example.gold_shown for example in made.examples} == {True, False}
    for example in made.examples:
        assert len(shown(example)) == 4
        assert ("s0" in shown(example)) is example.gold_shown
        assert {"d#1", "d#2"}.issubset(example.passages) is example.gold_shown


def test_the_gold_parent_comes_at_every_position_however_many_passages_it_has() -> None:
    examples = build("raft", distractor_source="random", gold_probability=1, parents=PARENTS).examples
    counts = [sum(shown(example)[place] == "s0" for example in examples) for place in range(4)]
    assert all(60 < count < 140 for count in counts)


def test_gold_passages_of_one_parent_count_once_against_the_limit() -> None:
    (example,) = build("gold", ITEMS[:1], gold={"q0": ("d#1", "d#4", "d#2")}, max_gold=1, parents=PARENTS).examples
    assert example.passages == ("d#1", "d#2")


def test_too_few_parents_are_counted_as_short() -> None:
    hits = {"q0": [Hit("q0", f"d#{n}", rank, 1 / rank) for rank, n in enumerate((1, 5, 6, 7, 8), 1)]}
    made = build("raft", ITEMS[:1], hits=hits, distractors=3, gold_probability=1, parents=PARENTS)
    assert (len(shown(made.examples[0])), made.short_count) == (3, 1)


def test_fewer_hits_than_distractors_are_counted_never_filled_up() -> None:
    few = {"q0": HITS["q0"][:2]}
    built = build("raft", ITEMS[:1], hits=few, gold_probability=1)
    assert sorted(built.examples[0].passages) == ["d#1", "d#2", "d#5"]
    assert (built.short_count, build("raft").short_count) == (1, 0)


def test_an_item_that_is_not_answerable_teaches_to_abstain_in_every_context() -> None:
    for kind in ("none", "raft", "retrieved"):
        (example,) = build(kind, [UNANSWERABLE], without_gold="answer", gold_probability=1).examples
        assert example.answer == "I cannot tell."
        assert not example.gold_shown
    assert len(build("raft", [UNANSWERABLE]).examples[0].passages) == 4


def test_an_example_depends_on_its_item_and_seed_alone() -> None:
    whole = build("raft", distractor_source="random")
    assert build("raft", ITEMS[:50], distractor_source="random").examples == whole.examples[:50]
    assert build("raft", distractor_source="random", seed=2) != whole


def test_items_without_gold_are_told_apart_before_sizes_are_cut() -> None:
    items = [*ITEMS[:2], UNANSWERABLE]
    gold = {"q0": ("d#1",), "q1": ()}
    assert trainable(items, gold, ["none", "retrieved"]) == (tuple(items), ())
    assert trainable(items, gold, ["none", "raft"]) == ((ITEMS[0], UNANSWERABLE), ("q1",))
    assert trainable(items, gold, ["raft", "gold"]) == ((ITEMS[0],), ("q1", "u"))


@pytest.mark.parametrize("kind", ["gold", "raft"])
def test_an_item_without_gold_is_an_error_never_a_guess(kind: str) -> None:
    with pytest.raises(TrialError, match="Item q0 has no gold passage: leave it out"):
        build(kind, ITEMS[:1], gold={"q0": ()}, gold_probability=0)


@pytest.mark.parametrize("kind", ["raft", "retrieved"])
def test_an_item_without_retrieval_is_an_error(kind: str) -> None:
    with pytest.raises(TrialError, match="Nothing was retrieved for training item q0"):
        build(kind, ITEMS[:1], hits={})


def test_a_passage_that_is_not_in_the_corpus_is_an_error() -> None:
    with pytest.raises(TrialError, match="not in the corpus, such as x#9"):
        build("gold", ITEMS[:1], gold={"q0": ("x#9",)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"gold_probability": 1.5}, "from 0 to 1"), ({"distractors": -1}, "0 or more"), ({"max_gold": 0}, "1 or more")],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingContext("raft", **settings)


QUOTED = Item("q", "Where?", ("Bakodu",), "c", evidence=(Evidence("d", "The capital of Lomira is the town of Bakodu"),))


def quote(passage: str, item: Item = QUOTED, **more: Any) -> TrainingSet:
    """One example that shows this passage as gold, and two others."""
    texts = {**PASSAGES, "d#1": Passage("d#1", "d", passage)}
    hits = {"q": [Hit("q", f"d#{n}", rank, 1 / rank) for rank, n in enumerate((1, 5, 6), 1)]}
    context = TrainingContext("raft", quote=True, **{"gold_probability": 1, "distractors": 2, **more})
    return training_set([item], context, passages=texts, gold={"q": ("d#1",)}, hits=hits, abstention="I cannot tell.", seed=1)


def test_an_answer_quotes_the_sentence_that_is_the_evidence_by_the_number_of_its_passage() -> None:
    made = quote("Lomira lies in the north. The capital of Lomira is the town\nof Bakodu. It rains.")
    (example,) = made.examples
    number = example.passages.index("d#1") + 1
    assert example.answer == f'[{number}] "The capital of Lomira is the town of Bakodu."\nAnswer: Bakodu'
    assert divided(example.answer)[1] == "Bakodu"
    assert made.unquoted_count == 0


def test_where_no_sentence_is_the_evidence_the_answer_stands_alone_and_is_counted() -> None:
    made = quote("Bakodu has a market.")
    assert (made.examples[0].answer, made.unquoted_count) == ("Bakodu", 1)
    # Without gold there is nothing to quote.
    made = quote("The capital of Lomira is the town of Bakodu.", gold_probability=0)
    assert (made.examples[0].answer, made.unquoted_count) == ("I cannot tell.", 0)


def test_of_a_paragraph_of_evidence_the_sentence_with_the_answer_is_quoted() -> None:
    paragraph = "Lomira lies in the north of the valley. Its capital since 1200 is the town of Bakodu. It rains there in the spring."
    item = replace(QUOTED, evidence=(Evidence("d", paragraph),))
    (example,) = quote(paragraph, item).examples
    assert example.answer.endswith('"Its capital since 1200 is the town of Bakodu."\nAnswer: Bakodu')
    # Yes or no stands in none of them: which is meant cannot be told.
    made = quote(paragraph, replace(item, references=("yes",)))
    assert (made.examples[0].answer, made.unquoted_count) == ("yes", 1)


def test_evidence_of_one_word_is_in_the_sentence_that_holds_it() -> None:
    (example,) = quote("It rains. They met in Bakodu.", replace(QUOTED, evidence=(Evidence("d", "Bakodu"),))).examples
    assert example.answer.endswith('"They met in Bakodu."\nAnswer: Bakodu')


@pytest.mark.parametrize(
    ("said", "quotation", "text"),
    [
        ('[1] "A b c."\nAnswer: yes', '[1] "A b c."', "yes"),
        ("Answer: yes", "", "Answer: yes"),
        ("yes", "", "yes"),
        ('[1] "\nAnswer: x"\nAnswer: two\nlines ', '[1] "\nAnswer: x"', "two\nlines"),
        ('[1] "cut off befo', '[1] "cut off befo', ""),
        ("[1] says so", "", "[1] says so"),
    ],
)
def test_what_follows_the_quotation_is_the_answer(said: str, quotation: str, text: str) -> None:
    assert divided(said) == (quotation, text)
