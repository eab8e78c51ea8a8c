"""Small pieces are searched, wider text is shown: whole parents, or what is around the hits."""

from collections.abc import Iterable, Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.data.chunk import Chunking, pieces
from flows.data.parents import ParentKind, Parents, parent_texts, places
from flows.data.tokens import Span, by_words, word_spans
from flows.records import Document, Passage, Place, Section

PAPER = Document(
    "p",
    "A paper",
    (
        Section("", ()),
        Section("Methods > Data", (" We took tea. It was green.", "Black tea came later.")),
        Section("Results", ("Tea won.",)),
    ),
)


def cut(documents: list[Document], kind: ParentKind, most: int, window: int = 1) -> tuple[list[Passage], Parents]:
    found = list(pieces(documents, Chunking("sentences", window=window, stride=window)))
    texts = {text.id: text for text in parent_texts(documents, kind)}
    return [piece.passage for piece in found], Parents(texts, {place.passage: place for place in places(found, kind)}, most, by_words)


def test_a_section_is_shown_whole_with_its_headings_each_once_at_the_place_of_its_best_passage() -> None:
    passages, parents = cut([PAPER], "section", 100)
    assert [passage.text for passage in passages] == ["We took tea.", "It was green.", "Black tea came later.", "Tea won."]
    assert parents.shown([passages[1], passages[3], passages[0]]) == (
        Passage("p#s2", "p", "We took tea. It was green.\n\nBlack tea came later.", "A paper", "Methods > Data"),
        Passage("p#s3", "p", "Tea won.", "A paper", "Results"),
    )


def test_a_document_is_shown_whole_without_a_heading() -> None:
    passages, parents = cut([PAPER], "document", 100)
    text = "We took tea. It was green.\n\nBlack tea came later.\n\nTea won."
    assert parents.shown(passages[::-1]) == (Passage("p#document", "p", text, "A paper", ""),)


def test_a_parent_that_is_too_long_is_cut_around_the_hit_to_whole_sentences_and_says_where() -> None:
    sentences = [f"Word{n} is here." for n in range(9)]
    passages, parents = cut([Document("d", "", (Section("", (" ".join(sentences),)),))], "section", 15)
    (shown,) = parents.shown([passages[4]])
    assert shown.text == " ".join(sentences[3:6])
    start, end = shown.id.removeprefix("d#s1[").removesuffix("]").split(":")
    assert " ".join(sentences)[int(start) : int(end)] == shown.text


@pytest.mark.parametrize(("hit", "shown"), [(0, slice(0, 3)), (8, slice(6, 9))])
def test_room_that_one_side_does_not_need_goes_to_the_other(hit: int, shown: slice) -> None:
    sentences = [f"Word{n} is here." for n in range(9)]
    passages, parents = cut([Document("d", "", (Section("", (" ".join(sentences),)),))], "section", 12)
    assert parents.shown([passages[hit]])[0].text == " ".join(sentences[shown])


def test_other_hits_of_a_parent_are_shown_too_as_far_as_they_fit_the_best_first() -> None:
    sentences = [f"Word{n} is here." for n in range(9)]
    passages, parents = cut([Document("d", "", (Section("", (" ".join(sentences),)),))], "document", 12)
    assert parents.shown([passages[2], passages[8], passages[4]])[0].text == " ".join(sentences[2:5])


def test_where_no_sentence_fits_the_cut_is_between_words() -> None:
    text = f"{' '.join(f'before{n}' for n in range(50))} hit. {' '.join(f'after{n}' for n in range(50))}"
    documents = [Document("d", "", (Section("", (text,)),))]
    found = list(pieces(documents, Chunking("tokens", 2)))
    hit = next(piece for piece in found if "hit" in piece.passage.text)
    parents = Parents(
        {text.id: text for text in parent_texts(documents, "section")}, {p.passage: p for p in places(found, "section")}, 8, by_words
    )
    (shown,) = parents.shown([hit.passage])
    assert shown.text == "before47 before48 before49 hit."


def by_characters(texts: Iterable[str], /) -> Iterator[Sequence[Span]]:
    return ([(n, n + 1) for n in range(len(text))] for text in texts)


def test_a_text_without_spaces_may_be_cut_anywhere() -> None:
    parent = Passage("d#s1", "d", "\u8336" * 300)
    parents = Parents({parent.id: parent}, {"d#1": Place("d#1", "d#s1", 100)}, 20, by_characters)
    assert parents.shown([Passage("d#1", "d", parent.text[100:110])])[0].id == "d#s1[95:115]"


def test_without_parents_there_are_neither_texts_nor_places() -> None:
    assert list(parent_texts([PAPER], "none")) == list(places(pieces([PAPER], Chunking()), "none")) == []


_TEXTS = st.lists(
    st.sampled_from(["Tea grows.", "Cats", "sleep.", "et al.", "Fig. 2", "3.5", "x-y", "\u8336\u3067\u3059\u3002", "\n"]), max_size=40
).map(" ".join)


@given(
    sections=st.lists(st.lists(_TEXTS, max_size=3), min_size=1, max_size=3),
    kind=st.sampled_from(["section", "document"]),
    most=st.integers(12, 60),
    data=st.data(),
)
def test_what_is_shown_holds_the_best_hit_verbatim_and_is_never_too_long(
    sections: list[list[str]], kind: ParentKind, most: int, data: st.DataObject
) -> None:
    documents = [Document("d", "", tuple(Section("", tuple(paragraphs)) for paragraphs in sections))]
    passages, parents = cut(documents, kind, most)
    hits = data.draw(st.lists(st.sampled_from(passages), unique=True) if passages else st.just([]))
    shown = parents.shown(hits)
    assert len({passage.id for passage in shown}) == len(shown) <= len(hits)
    order = list(dict.fromkeys(parents.places[hit.id].parent for hit in hits))
    assert [passage.id.split("[")[0] for passage in shown] == order
    for passage, name in zip(shown, order, strict=True):
        best = next(hit for hit in hits if parents.places[hit.id].parent == name)
        whole = parents.texts[name].text
        place = parents.places[best.id].start
        assert whole[place : place + len(best.text)] == best.text
        assert passage.text in whole
        if len(word_spans(best.text)) <= most:
            assert len(word_spans(passage.text)) <= most
        if "[" in passage.id:
            start, end = map(int, passage.id.split("[")[1][:-1].split(":"))
            assert start <= place
            assert end >= place + len(best.text)
        else:
            assert passage.text == whole.strip()
