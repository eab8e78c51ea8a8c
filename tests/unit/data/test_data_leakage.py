"""Leaks between pools: what counts as the same question, and what does not."""

import pytest

from flows.data import leakage
from flows.data.leakage import Leak, LeakageError, find_leaks, resolve_leaks
from flows.errors import UserError
from flows.records import Item


def item(name: str, question: str, *references: str, answerable: bool = True) -> Item:
    return Item(name, question, references, f"c-{name}", answerable=answerable)


def kinds(left: Item, right: Item, *, threshold: float = 0.8, stand_alone: bool = True) -> list[str]:
    return [leak.kind for leak in find_leaks({"test": [left], "training": [right]}, threshold=threshold, stand_alone=stand_alone)]


@pytest.mark.parametrize(
    "other",
    [
        "What is the capital of France?",
        "what is the capital of  france",
        "WHAT IS THE CAPITAL OF FRANCE ?!",
        "«What is the capital of France»",
    ],
)
def test_the_same_words_are_an_exact_leak_whatever_case_marks_and_references(other: str) -> None:
    assert kinds(item("a", "What is the capital of France?", "Paris"), item("b", other, "Lyon")) == ["exact"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "What's the capital of France, please?"),
        ("What are the symptoms of a migraine?", "What are symptoms of migraines?"),
        ("Which genes are involved in the disease?", "Which gene is involved in this disease?"),
        ("What is the seed lexicon?", "What is a seed lexicon?"),
    ],
)
def test_questions_that_differ_only_in_small_words_are_near_whatever_their_references(one: str, other: str) -> None:
    assert kinds(item("a", one, "x"), item("b", other, "y")) == ["near"]


TEMPLATES = [
    ("What is the capital of France?", "What is the capital of Peru?"),
    (
        "In which year did the old kingdom of France sign and ratify the treaty with all of its neighbours?",
        "In which year did the old kingdom of Spain sign and ratify the treaty with all of its neighbours?",
    ),
    (
        "When was the first edition of the book about rivers and mountains printed in Austria by the old press?",
        "When was the first edition of the book about rivers and mountains printed in Australia by the old press?",
    ),
    (
        "Does the drug aspirin reduce the long term risk of stroke in patients older than 60 with diabetes?",
        "Does the drug aspirin reduce the long term risk of stroke in patients older than 80 with diabetes?",
    ),
]


@pytest.mark.parametrize(("one", "other"), TEMPLATES)
def test_a_template_with_another_name_or_number_and_another_reference_is_no_leak(one: str, other: str) -> None:
    assert kinds(item("a", one, "1610"), item("b", other, "1742")) == []
    assert kinds(item("a", one, "Paris"), item("b", other, "Lima")) == []


@pytest.mark.parametrize(("one", "other"), TEMPLATES[1:])
def test_the_same_pair_with_a_shared_reference_is_near(one: str, other: str) -> None:
    assert kinds(item("a", one, "The Duke of York", "York"), item("b", other, "the duke of york.")) == ["near"]


@pytest.mark.parametrize("reference", ["yes", "No.", "unanswerable", "3", "1610", "two"])
def test_a_reference_that_many_questions_share_makes_no_pair_near(reference: str) -> None:
    one, other = TEMPLATES[1]
    assert kinds(item("a", one, reference), item("b", other, reference)) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("When was the author born?", "Where was the author born?"),
        ("Is aspirin safe for children?", "Is aspirin not safe for children?"),
        ("Who is the president of France?", "Who was the president of France?"),
        ("Does aspirin inhibit warfarin?", "Does warfarin inhibit aspirin?"),
    ],
)
def test_another_question_word_negation_past_or_order_is_another_question(one: str, other: str) -> None:
    assert kinds(item("a", one, "x"), item("b", other, "y")) == []


def test_a_typing_mistake_with_the_same_reference_is_near() -> None:
    one = "Which famous explorer was the first person who reached the southern pole of the earth?"
    other = one.replace("explorer", "exploror")
    assert kinds(item("a", one, "Roald Amundsen"), item("b", other, "Roald Amundsen")) == ["near"]
    assert kinds(item("a", one, "Roald Amundsen"), item("b", other, "Roald Amundsen"), threshold=1.0) == []


def test_questions_that_do_not_stand_alone_leak_only_with_a_shared_reference() -> None:
    same = "What baselines do they use?"
    assert kinds(item("a", same, "BERT"), item("b", same, "an LSTM"), stand_alone=False) == []
    assert kinds(item("a", same, "BERT"), item("b", same, "bert"), stand_alone=False) == ["exact"]
    assert kinds(item("a", same, "Yes"), item("b", same, "Yes"), stand_alone=False) == []
    assert kinds(item("a", same, "BERT"), item("b", "What baseline do they use?", "an LSTM"), stand_alone=False) == []
    abstaining = [item(name, same, "not in the paper", answerable=False) for name in "ab"]
    assert kinds(*abstaining, stand_alone=False) == []


def pools() -> dict[str, list[Item]]:
    return {
        "test": [item("t1", "Who wrote the red book?", "Ann"), item("t2", "Who wrote the blue book?", "Bob")],
        "few-shot": [item("f1", "Who wrote the red book", "Ann"), item("f2", "Why is it green?", "so")],
        "training": [
            item("r1", "Why is it green", "so"),
            item("r2", "Who wrote that blue book?", "Bob"),
            item("r3", "How far?", "far"),
        ],
    }


def test_every_two_pools_are_compared_and_the_better_protected_is_left() -> None:
    leaks = find_leaks(pools())
    assert [(leak.kind, leak.left_pool, leak.left_item, leak.right_pool, leak.right_item) for leak in leaks] == [
        ("exact", "test", "t1", "few-shot", "f1"),
        ("near", "test", "t2", "training", "r2"),
        ("exact", "few-shot", "f2", "training", "r1"),
    ]
    assert leaks[0] == Leak("exact", "test", "t1", "few-shot", "f1", 1.0, "Who wrote the red book?", "Who wrote the red book")


def test_questions_inside_one_pool_are_not_compared() -> None:
    assert find_leaks({"test": [item("a", "Who?", "x"), item("b", "Who?", "x")], "training": []}) == ()


def test_drop_leaves_out_the_less_protected_side_and_stop_raises() -> None:
    leaks = find_leaks(pools())
    left = resolve_leaks(pools(), leaks, "drop")
    assert {name: [one.id for one in items] for name, items in left.items()} == {
        "test": ["t1", "t2"],
        "few-shot": ["f2"],
        "training": ["r3"],
    }
    with pytest.raises(
        LeakageError, match=r"3 questions stand in two pools:\n  test t1 'Who wrote the red book\?' ~ few-shot f1"
    ) as caught:
        resolve_leaks(pools(), leaks, "stop")
    assert caught.value.leaks == leaks
    assert "test t1 'Who wrote the red book?' ~ few-shot f1" in str(caught.value)
    assert "on_leak: drop" in str(caught.value)


def test_pools_without_leaks_pass_by_stop_unchanged() -> None:
    clean = {"test": pools()["test"], "training": pools()["training"][2:]}
    assert resolve_leaks(clean, find_leaks(clean), "stop") == {name: tuple(items) for name, items in clean.items()}


def test_a_threshold_out_of_range_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="set it above 0, up to 1"):
        find_leaks({}, threshold=0)


def test_large_pools_give_the_same_leaks_as_a_comparison_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    test = [item(f"t{n}", f"Which river flows through the town {n} of the northern county {n % 7}?", f"river {n}") for n in range(300)]
    training = [item(f"r{n}", f"How high is mountain {n} in the region {n % 11} near the lake?", f"{n} m") for n in range(700)]
    training[100] = item("exact", test[5].question.upper(), "x")
    training[200] = item("small", test[6].question.replace(" the ", " a "), "x")
    training[300] = item("shared", test[7].question.replace("northern", "nothern"), "River 7")
    training[400] = item("no words", "???", "x")
    test.append(item("no words", "???", "y"))
    found = find_leaks({"test": test, "training": training})
    assert [(leak.kind, leak.left_item, leak.right_item) for leak in found] == [
        ("exact", "t5", "exact"),
        ("near", "t6", "small"),
        ("near", "t7", "shared"),
        ("exact", "no words", "no words"),
    ]
    monkeypatch.setattr(leakage, "_ALL_PAIRS", 10**9)
    assert find_leaks({"test": test, "training": training}) == found
