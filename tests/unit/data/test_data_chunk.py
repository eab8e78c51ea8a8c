"""Passages: complete, small enough, in order."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit
from tokenizers.trainers import BpeTrainer

from flows.data.chunk import Chunking, TokenSpans, chunk, tokenizer_spans, word_spans
from flows.errors import UserError
from flows.records import Document, Passage, Section


def document(*paragraphs: str, heading: str = "Results") -> Document:
    return Document("d", "A title", (Section(heading, paragraphs),))


def texts(passages: tuple[Passage, ...]) -> list[str]:
    return [passage.text for passage in passages]


@pytest.fixture(scope="module")
def byte_level() -> tokenizers.Tokenizer:
    """A byte-level BPE, whose tokens begin with the space before them and may be parts of a character."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat", "the dog sat on the log"], trainer)
    return tokenizer


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


def test_tokens_are_counted_by_the_tokenizer_given(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = document("a,b,c d,e,f g,h,i")
    for given_as in (tokenizer, tmp_path / "tokenizer.json"):
        assert texts(chunk([source], Chunking("tokens", 2), tokenizer_spans(given_as))) == ["a,b,c d,e,f", "g,h,i"]
    assert tokenizer.truncation is not None, "the caller's tokenizer is left as it was"
    assert len(chunk([source], Chunking("tokens", 2), word_spans)) > 2


def test_a_tokenizer_that_does_not_load_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": "none"}))
    with pytest.raises(UserError, match=r"cannot be loaded: .* Give the path of a tokenizer\.json"):
        tokenizer_spans(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0: set it to 1 or more"),
        ({"unit": "tokens", "max_tokens": 5, "overlap_tokens": 5}, "from 0 to below max_tokens"),
        ({"overlap_tokens": 5}, "belongs to unit: tokens"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Chunking(**settings)  # type: ignore[arg-type]  # wrong values are the point


_TEXT = st.text(st.sampled_from("ab. é茶!?-\n😀"), max_size=80)


_CHUNKINGS = st.builds(Chunking, max_tokens=st.integers(1, 9)) | st.integers(1, 9).flatmap(
    lambda most: st.builds(Chunking, st.just("tokens"), st.just(most), st.integers(0, most - 1))
)


@pytest.mark.parametrize("counter", ["words", "bytes"])
@given(paragraphs=st.lists(_TEXT, max_size=4), chunking=_CHUNKINGS)
def test_nothing_is_lost_and_no_passage_is_empty_or_too_long(
    byte_level: tokenizers.Tokenizer, counter: str, paragraphs: list[str], chunking: Chunking
) -> None:
    spans: TokenSpans = word_spans if counter == "words" else tokenizer_spans(byte_level)
    passages = chunk([document(*paragraphs)], chunking, spans)
    assert all(passage.text.strip() for passage in passages)
    if chunking.overlap_tokens == 0:
        assert "".join("".join(passage.text.split()) for passage in passages) == "".join("".join(paragraphs).split())
    # A character of four bytes may be four tokens and is never cut; a token may be cut by the one before it when read alone.
    assert all(len(spans(passage.text)) <= max(chunking.max_tokens, 4) + 1 for passage in passages)
    assert [passage.id for passage in passages] == [f"d#{n}" for n in range(1, len(passages) + 1)]
