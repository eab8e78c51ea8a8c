"""Reciprocal rank fusion: the formula, ties, and what follows from them for any two legs."""

from hypothesis import given
from hypothesis import strategies as st

from services.retriever.fusion import Ranked, Scored, fuse, ranked

KEYS = st.text("abcdef", min_size=1, max_size=3)
LEG = st.dictionaries(KEYS, st.floats(-1, 1), max_size=12).map(lambda scores: ranked(map(Scored, scores, scores.values()), 12))


def leg(*keys: str) -> tuple[Scored[str], ...]:
    return tuple(Scored(key, 1 - place / 10) for place, key in enumerate(keys))


def test_scores_are_sums_of_reciprocal_ranks() -> None:
    hits = fuse(leg("a", "b"), leg("b", "c"), k=10)
    assert hits == (
        Ranked("b", 1 / 62 + 1 / 61, 2, 0.9, 1, 1.0),
        Ranked("a", 1 / 61, 1, 1.0, None, None),
        Ranked("c", 1 / 62, None, None, 2, 0.9),
    )


def test_weights_and_the_constant_are_those_asked_for() -> None:
    hits = fuse(leg("a"), leg("b"), k=2, fusion_k=1, lexical_weight=1.0, dense_weight=3.0)
    assert [(hit.key, hit.score) for hit in hits] == [("b", 1.5), ("a", 0.5)]


def test_a_leg_of_weight_zero_adds_no_passages_but_keeps_its_ranks() -> None:
    hits = fuse(leg("a", "b"), leg("b", "c"), k=10, lexical_weight=0)
    assert [hit.key for hit in hits] == ["b", "c"]
    assert hits[0].lexical_rank == 2


def test_passages_that_score_the_same_stand_in_the_order_of_their_keys() -> None:
    assert [hit.key for hit in fuse(leg("z", "b"), leg("b", "z"), k=2)] == ["b", "z"]
    assert [hit.key for hit in ranked([Scored("b", 0.5), Scored("a", 0.5), Scored("c", 0.7)], 2)] == ["c", "a"]


def test_differences_below_the_precision_of_an_encoder_are_ties() -> None:
    assert [hit.key for hit in ranked([Scored("b", 0.50000005), Scored("a", 0.5)], 2)] == ["a", "b"]


def test_one_leg_alone_keeps_its_own_scores() -> None:
    assert fuse(leg("a", "b"), None, k=1) == (Ranked("a", 1.0, 1, 1.0),)
    assert fuse(None, leg("a"), k=5) == (Ranked("a", 1.0, None, None, 1, 1.0),)
    assert fuse((), (), k=5) == ()


@given(LEG, LEG, st.integers(1, 20))
def test_the_result_is_ordered_cut_and_holds_each_passage_once(
    lexical: tuple[Scored[str], ...], dense: tuple[Scored[str], ...], k: int
) -> None:
    hits = fuse(lexical, dense, k=k)
    keys = [hit.key for hit in hits]
    everything = {hit.key for hit in (*lexical, *dense)}
    assert len(keys) == len(set(keys)) == min(k, len(everything))
    assert list(hits) == sorted(hits, key=lambda hit: (-hit.score, hit.key))
    assert hits == fuse(lexical, dense, k=100)[:k]


@given(LEG, LEG)
def test_swapping_legs_of_equal_weight_changes_no_score(lexical: tuple[Scored[str], ...], dense: tuple[Scored[str], ...]) -> None:
    there, back = fuse(lexical, dense, k=50), fuse(dense, lexical, k=50)
    assert [(hit.key, hit.score) for hit in there] == [(hit.key, hit.score) for hit in back]
