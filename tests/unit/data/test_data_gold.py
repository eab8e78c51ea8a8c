"""Gold passages by the evidence that they hold."""

import pytest

from flows.data.chunk import Chunking, chunk
from flows.data.gold import map_gold
from flows.records import Document, Evidence, Item, Passage, Section

WORDS = [f"word{n}" for n in range(20)]


def item(*evidence: Evidence) -> Item:
    return Item("q", "Question?", ("answer",), "c", evidence=evidence)


def passages(*texts: str, document: str = "d") -> list[Passage]:
    return [Passage(f"{document}#{n}", document, text) for n, text in enumerate(texts, 1)]


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        ("Before. Tea came from China in 1610. After.", "Tea came from China, in 1610"),
        ("Tea came from China", "Before. Tea came from China in 1610. After."),
        ("TEA  came\nfrom China", "tea came from china."),
        ("It was in 1610 there.", "in 1610"),
        ("1610!", "1610"),
    ],
)
def test_a_passage_that_holds_the_evidence_or_lies_in_it_is_gold(text: str, evidence: str) -> None:
    found = map_gold([item(Evidence("d", evidence))], passages("Something else entirely here.", text))
    assert found.passages == {"q": ("d#2",)}
    assert (found.evidence_count, found.unmapped) == (1, ())


@pytest.mark.parametrize(
    ("text", "evidence"),
    [
        ("Coffee came from Yemen in 1610.", "Tea came from China in 1610"),
        ("China from came tea", "tea came from china"),
        ("The year 16100 there.", "1610"),
        ("in China", "Tea came from afar and grew in China for long"),
    ],
)
def test_a_passage_that_only_shares_words_is_not_gold(text: str, evidence: str) -> None:
    found = map_gold([item(Evidence("d", evidence))], passages(text))
    assert found.passages == {"q": ()}
    assert found.unmapped == (("q", Evidence("d", evidence)),)


@pytest.mark.parametrize(("length", "cut"), [(length, cut) for length in range(5, 21) for cut in range(1, length)])
def test_evidence_that_chunking_cut_in_two_has_gold_in_its_larger_half(length: int, cut: int) -> None:
    evidence = WORDS[:length]
    first, second = [*["other"] * 30, *evidence[:cut]], [*evidence[cut:], *["other"] * 30]
    gold = map_gold([item(Evidence("d", " ".join(evidence)))], passages(" ".join(first), " ".join(second))).passages["q"]
    assert ("d#1" if cut > length / 2 else "d#2") in gold


def test_windows_of_tokens_keep_the_gold_of_a_paragraph() -> None:
    paragraphs = [" ".join(f"w{n}x{m}" for m in range(40)) for n in range(5)]
    source = Document("d", "", (Section("", tuple(paragraphs)),))
    found = chunk([source], Chunking("tokens", 30, 10))
    gold = map_gold([item(Evidence("d", paragraphs[2]))], found).passages["q"]
    assert gold
    assert all("w2x" in passage.text for passage in found if passage.id in gold)


def test_evidence_is_sought_in_its_own_document_and_without_one_everywhere() -> None:
    corpus = passages("Tea came from China") + passages("Tea came from China", document="e")
    text = "Tea came from China"
    assert map_gold([item(Evidence("e", text))], corpus).passages["q"] == ("e#1",)
    assert map_gold([item(Evidence("", text))], corpus).passages["q"] == ("d#1", "e#1")


def test_evidence_of_a_document_that_is_not_there_is_counted_as_unmapped() -> None:
    evidence = Evidence("other", "Tea came from China")
    found = map_gold([item(evidence, Evidence("d", "Tea came from China"))], passages("Tea came from China"))
    assert (found.passages["q"], found.evidence_count, found.unmapped) == (("d#1",), 2, (("q", evidence),))


def test_gold_comes_in_order_of_the_evidence_each_once() -> None:
    corpus = passages("Tea came from China", "Coffee came from Yemen")
    evidence = [Evidence("d", "Coffee came from Yemen"), Evidence("d", "Tea came from China"), Evidence("d", "coffee came from yemen")]
    assert map_gold([item(*evidence)], corpus).passages["q"] == ("d#2", "d#1")


def test_an_item_without_evidence_has_no_gold() -> None:
    assert map_gold([item()], passages("Tea came from China")).passages == {"q": ()}
