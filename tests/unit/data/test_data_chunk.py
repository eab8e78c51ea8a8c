"""How documents are cut, unit by unit."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from flows.data.chunk import Chunking, chunk, pieces
from flows.data.tokens import by_tokenizer, by_words, load_tokenizer
from flows.errors import UserError
from flows.records import Document, Passage, Section


def document(*paragraphs: str, heading: str = "Results") -> Document:
    return Document("d", "A title", (Section(heading, paragraphs),))


def texts(passages: tuple[Passage, ...]) -> list[str]:
    return [passage.text for passage in passages]


def test_ids_count_over_sections_and_headings_and_titles_are_carried() -> None:
    source = Document("d", "T", (Section("One", ("a b", "  ")), Section("Empty", ()), Section("Two", ("c",))))
    assert chunk([source], Chunking()) == (Passage("d#1", "d", "a b", "T", "One"), Passage("d#2", "d", "c", "T", "Two"))


def test_paragraphs_are_never_merged_and_a_long_one_is_cut_at_the_ends_of_sentences() -> None:
    long = "One two three. Four five! Is 3.5 six? Seven eight."
    passages = chunk([document("Short.", long)], Chunking(max_tokens=7))
    assert texts(passages) == [
        "Short.",
        "One two three. Four five!",
        "Is 3.5 six?",
        "Seven eight.",
    ]


def test_a_sentence_that_is_too_long_is_cut_at_spaces() -> None:
    passages = chunk([document("a b c d e f g h. Next one.")], Chunking(max_tokens=4))
    assert texts(passages) == ["a b c d", "e f g", "h.", "Next one."]


def test_a_word_that_is_too_long_is_cut_between_tokens() -> None:
    assert texts(chunk([document("x-y-z-w end")], Chunking(max_tokens=3))) == ["x-y", "-z-", "w end"]


def test_windows_overlap_by_whole_words_and_do_not_cross_sections() -> None:
    source = Document("d", "", (Section("One", ("a b c d", "e f g")), Section("Two", ("h i",))))
    assert texts(chunk([source], Chunking("tokens", 4, 2))) == ["a b c d", "c d\n\ne f", "e f g", "h i"]


def test_windows_without_overlap_hold_every_word_once() -> None:
    assert texts(chunk([document("a b c d e")], Chunking("tokens", 2))) == ["a b", "c d", "e"]


def test_a_document_is_one_passage_however_long() -> None:
    source = Document("d", "T", (Section("One", ("a b", "  ")), Section("Empty", ()), Section("Two", ("c " * 999,))))
    assert chunk([source], Chunking("document", 8)) == (Passage("d#1", "d", "a b\n\n  \n\n" + ("c " * 999).strip(), "T", ""),)
    assert chunk([Document("d", "T", (Section("One", (" ", "\n")),))], Chunking("document")) == ()


def test_a_section_is_one_passage_and_a_long_one_is_cut_between_its_paragraphs() -> None:
    source = Document("d", "T", (Section("One", ("a b", "c d e", "f g")), Section("Two", ("h",))))
    assert texts(chunk([source], Chunking("section", 9))) == ["a b\n\nc d e\n\nf g", "h"]
    assert texts(chunk([source], Chunking("section", 5))) == ["a b\n\nc d e", "f g", "h"]


def test_a_paragraph_too_long_for_a_section_is_cut_at_sentences_that_know_abbreviations() -> None:
    source = document("Short one.", "We follow Smith et al. (2019) here. It fits.")
    assert texts(chunk([source], Chunking("section", 12))) == ["Short one.", "We follow Smith et al. (2019) here.", "It fits."]


def test_windows_of_sentences_move_by_their_stride_within_a_section() -> None:
    source = Document("d", "", (Section("One", ("Tea grows. Cats sleep.", "Heading", "Dogs bark. Rain falls.")), Section("Two", ("End.",))))
    assert texts(chunk([source], Chunking("sentences", window=3, stride=2))) == [
        "Tea grows. Cats sleep.\n\nHeading",
        "Heading\n\nDogs bark. Rain falls.",
        "End.",
    ]
    assert texts(chunk([source], Chunking("sentences", window=2, stride=2))) == [
        "Tea grows. Cats sleep.",
        "Heading\n\nDogs bark.",
        "Rain falls.",
        "End.",
    ]
    assert len(chunk([source], Chunking("sentences", window=1, stride=1))) == 6


def test_a_window_of_sentences_that_is_too_long_has_fewer_and_none_is_lost() -> None:
    source = document("Green tea grows. Black cats sleep. White dogs bark. Rain.")
    assert texts(chunk([source], Chunking("sentences", 8, window=3, stride=3))) == [
        "Green tea grows. Black cats sleep.",
        "White dogs bark. Rain.",
    ]
    assert texts(chunk([source], Chunking("sentences", 8, window=3, stride=1))) == [
        "Green tea grows. Black cats sleep.",
        "Black cats sleep. White dogs bark.",
        "White dogs bark. Rain.",
    ]


def test_there_is_no_window_for_what_is_a_part_of_the_one_before() -> None:
    source = document("Tea. Cats. Dogs. Black and white birds of many kinds sing.")
    # From the second sentence on, the fourth does not fit either: such a window would bring nothing.
    assert texts(chunk([source], Chunking("sentences", 10, window=3, stride=1))) == [
        "Tea. Cats. Dogs.",
        "Black and white birds of many kinds sing.",
    ]


def test_a_sentence_too_long_for_a_window_is_cut_at_spaces() -> None:
    source = document("The old tea from the far hills of China is green. It grows.")
    assert texts(chunk([source], Chunking("sentences", 8, window=1, stride=1))) == [
        "The old tea from the far hills of",
        "China is green.",
        "It grows.",
    ]


def test_each_piece_knows_where_it_stands_in_its_document_and_section() -> None:
    source = Document("d", "", (Section("", ()), Section("One", (" a b", "c d")), Section("Two", ("e f g h i",))))
    whole = " a b\n\nc d\n\ne f g h i"
    for unit in ("paragraph", "section", "sentences", "tokens"):
        found = list(pieces([source], Chunking(unit, 3)))
        assert [piece.section for piece in found][:: len(found) - 1] == [2, 3]
        for piece in found:
            assert whole[piece.start :].startswith(piece.passage.text)
            assert piece.start_in_section == piece.start - (0 if piece.section == 2 else 11)


def test_the_ids_of_a_document_do_not_depend_on_the_others() -> None:
    one, other = document("A b. C d."), Document("e", "", (Section("", ("X y.",)),))
    for unit in ("document", "section", "paragraph", "sentences", "tokens"):
        alone = chunk([one], Chunking(unit, 3, window=1, stride=1))
        assert [passage for passage in chunk([other, one], Chunking(unit, 3, window=1, stride=1)) if passage.document == "d"] == list(alone)


def test_tokens_are_counted_by_the_tokenizer_given(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = document("a,b,c d,e,f g,h,i")
    counted = by_tokenizer(load_tokenizer(tmp_path / "tokenizer.json"))
    assert texts(chunk([source], Chunking("tokens", 2), counted)) == ["a,b,c d,e,f", "g,h,i"]
    assert len(chunk([source], Chunking("tokens", 2), by_words)) > 2


def test_a_tokenizer_that_does_not_load_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": "none"}))
    with pytest.raises(UserError, match=r"cannot be loaded: .* It should be a tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0: set it to 1 or more"),
        ({"unit": "tokens", "max_tokens": 5, "overlap_tokens": 5}, "from 0 to below max_tokens"),
        ({"overlap_tokens": 5}, "belongs to unit: tokens, not to paragraph"),
        ({"unit": "sentences", "window": 2, "stride": 3}, r"stride is 3: set it from 1 to window \(2\)"),
        ({"unit": "sentences", "window": 0, "stride": 0}, "stride is 0"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Chunking(**settings)  # type: ignore[arg-type]  # wrong values are the point
