"""What holds for every text, unit and counter: complete, in order, small enough, named once."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.trainers import BpeTrainer, WordPieceTrainer

from flows.data.chunk import Chunking, Piece, chunk, pieces
from flows.data.layout import lay_out
from flows.data.tokens import TokenSpans, by_tokenizer, by_words
from flows.records import Document, Section

_LINES = ["the cat sat on the mat", "the dog sat on the log. It is 3.5 m, e.g. Fig. 2", "\u8336 \u3067\u3059"]
# What one character may cost at most: four bytes are four tokens, and never cut apart.
_DEAREST = 4


def byte_level() -> TokenSpans:
    """Tokens begin with the space before them and may be parts of a character."""
    tokenizer = tokenizers.Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(_LINES, BpeTrainer(vocab_size=300, initial_alphabet=ByteLevel.alphabet(), show_progress=False))
    return by_tokenizer(tokenizer)


def word_pieces() -> TokenSpans:
    """As the encoder that ships: what is unknown is one token, and the rest of a word is written otherwise than its beginning."""
    tokenizer = tokenizers.Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.train_from_iterator(_LINES, WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False))
    return by_tokenizer(tokenizer)


COUNTERS: dict[str, TokenSpans] = {"words": by_words, "bytes": byte_level(), "word pieces": word_pieces()}

_MARKS = st.text(st.sampled_from("ab. \u00e9\u8336\u3002!?-\n\U0001f600"), max_size=80)
_WORDS = st.lists(
    st.sampled_from(
        [
            "the",
            "cat",
            "The dog.",
            "Fig. 2",
            "et al.",
            "3.5",
            "x-y-z",
            "log!",
            "\u8336\u3067\u3059\u3002",
            "\u05d0\u05d1\u05d2",
            "a" * 30,
            "\n",
        ]
    ),
    max_size=30,
).map(" ".join)
_SECTIONS = st.lists(
    st.builds(Section, st.sampled_from(["", "One", "Two > Three"]), st.lists(_MARKS | _WORDS, max_size=4).map(tuple)), max_size=3
).map(tuple)
_MOST = st.integers(_DEAREST, 12)
_CHUNKINGS = st.one_of(
    st.builds(Chunking, st.sampled_from(["document", "section", "paragraph"]), _MOST),
    _MOST.flatmap(lambda most: st.builds(Chunking, st.just("tokens"), st.just(most), st.integers(0, most - 1))),
    st.integers(1, 4).flatmap(
        lambda window: st.builds(Chunking, st.just("sentences"), _MOST, window=st.just(window), stride=st.integers(1, window))
    ),
)


def characters(text: str) -> str:
    """Without space: what may not be lost."""
    return "".join(text.split())


def overlaps(chunking: Chunking) -> bool:
    return chunking.overlap_tokens > 0 or (chunking.unit == "sentences" and chunking.stride < chunking.window)


@pytest.mark.parametrize("counter", COUNTERS)
@given(sections=_SECTIONS, chunking=_CHUNKINGS)
def test_no_passage_is_empty_or_longer_than_allowed_by_the_counter_named(
    counter: str, sections: tuple[Section, ...], chunking: Chunking
) -> None:
    found = chunk([Document("d", "", sections)], chunking, COUNTERS[counter])
    assert all(passage.text.strip() == passage.text != "" for passage in found)
    counts = [len(tokens) for tokens in COUNTERS[counter](passage.text for passage in found)]
    assert chunking.unit == "document" or max(counts, default=0) <= chunking.max_tokens


@pytest.mark.parametrize("counter", COUNTERS)
@given(sections=_SECTIONS, chunking=_CHUNKINGS)
@example(sections=(Section("", ("the Fig. 2 the the The dog.",)),), chunking=Chunking("tokens", 8, 5))
def test_nothing_is_lost_and_passages_are_verbatim_and_in_order(counter: str, sections: tuple[Section, ...], chunking: Chunking) -> None:
    source = Document("d", "", sections)
    text = lay_out(source).text
    found = list(pieces([source], chunking, COUNTERS[counter]))
    for piece in found:
        assert text[piece.start : piece.start + len(piece.passage.text)] == piece.passage.text
    starts = [piece.start for piece in found]
    assert starts == sorted(starts)
    covered = {n for piece in found for n in range(piece.start, piece.start + len(piece.passage.text))}
    assert not characters("".join(character for n, character in enumerate(text) if n not in covered))
    if not overlaps(chunking):
        assert "".join(characters(piece.passage.text) for piece in found) == characters(text)


@given(sections=_SECTIONS, chunking=_CHUNKINGS)
def test_what_two_neighbours_share_is_at_most_the_overlap(sections: tuple[Section, ...], chunking: Chunking) -> None:
    found = list(pieces([Document("d", "", sections)], chunking))
    for one, other in pairwise(found):
        shared = one.passage.text[max(0, other.start - one.start) :] if other.start < end(one) else ""
        (tokens,) = by_words([shared])
        if chunking.unit == "tokens":
            assert len(tokens) <= chunking.overlap_tokens
        assert end(other) > end(one), "a passage is never a part of the one before"
        assert other.section >= one.section
        assert overlaps(chunking) or not shared


def end(piece: Piece) -> int:
    return piece.start + len(piece.passage.text)


@given(documents=st.lists(_SECTIONS, min_size=1, max_size=3), chunking=_CHUNKINGS, place=st.integers(0, 3))
def test_ids_are_unique_and_stay_when_a_document_is_added(documents: Sequence[tuple[Section, ...]], chunking: Chunking, place: int) -> None:
    before = [Document(f"d{n}", "", sections) for n, sections in enumerate(documents)]
    added = Document("new", "", (Section("", ("The dog. The cat.",)),))
    kept = chunk(before, chunking)
    after = chunk([*before[:place], added, *before[place:]], chunking)
    assert len({passage.id for passage in after}) == len(after)
    assert tuple(passage for passage in after if passage.document != "new") == kept
    assert [passage.id for passage in kept if passage.document == "d0"] == [
        f"d0#{n}" for n in range(1, sum(p.document == "d0" for p in kept) + 1)
    ]


@pytest.mark.parametrize("counter", COUNTERS)
@pytest.mark.parametrize("unit", ["section", "paragraph", "sentences", "tokens"])
def test_a_word_of_ten_thousand_tokens_is_cut_and_complete(counter: str, unit: str) -> None:
    word = "a-" * 5_000
    chunking = replace(Chunking(max_tokens=200), unit=unit)  # type: ignore[arg-type]  # its names
    found = chunk([Document("d", "", (Section("", (f"The cat. {word} The dog.",)),))], chunking, COUNTERS[counter])
    assert characters("".join(passage.text for passage in found)) == characters(f"The cat. {word} The dog.")
    assert max(len(tokens) for tokens in COUNTERS[counter](passage.text for passage in found)) <= 200
    assert len(found) >= 50


@pytest.mark.parametrize("unit", ["document", "section", "paragraph", "sentences", "tokens"])
def test_documents_without_text_give_no_passage(unit: str) -> None:
    chunking = replace(Chunking(), unit=unit)  # type: ignore[arg-type]  # its names
    empty = [Document("a", "", ()), Document("b", "", (Section("x", ()),)), Document("c", "", (Section("x", ("", " \n", "\t")),))]
    assert chunk(empty, chunking) == ()
