"""Text from tokens: whole characters, joined pieces equal to the whole, and no trace of a stop text."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from services.generator.text_stream import TextStream

TEXT = "Größe: 3 € / 日本 🙂 end"


def byte_decode(ids: Sequence[int]) -> str:
    """A tokenizer whose tokens are bytes: the hardest case, every character is cut."""
    return bytes(ids).decode("utf-8", errors="replace")


def word_decode(ids: Sequence[int]) -> str:
    """A tokenizer like SentencePiece: every token is a word with a space before it, which is dropped at the start of a text."""
    return " ".join(f"w{token}" for token in ids)


def run(data: Sequence[int], *stops: str) -> tuple[list[str], TextStream]:
    stream = TextStream(byte_decode, stops)
    pieces = []
    for token in data:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return pieces, stream


def test_pieces_hold_whole_characters_and_join_to_the_text() -> None:
    pieces, stream = run(TEXT.encode())
    assert "".join(pieces) == stream.text == TEXT
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_character_that_is_never_finished_comes_out_broken_at_the_end() -> None:
    pieces, stream = run("a€".encode()[:-1])
    assert stream.text == "a\N{REPLACEMENT CHARACTER}"
    assert pieces[0] == "a"


def test_spaces_between_words_survive_decoding_in_windows() -> None:
    stream = TextStream(word_decode)
    pieces = [stream.push(token) for token in range(5)]
    assert pieces == ["w0", " w1", " w2", " w3", " w4"]


@pytest.mark.parametrize("stop", ["3 €", "日本", "🙂", "Größe", " end", "d"])
def test_a_stop_text_ends_the_text_and_never_leaks(stop: str) -> None:
    pieces, stream = run(TEXT.encode(), "nowhere", stop)
    assert stream.stopped
    assert "".join(pieces) == stream.text == TEXT[: TEXT.index(stop)]


def test_what_begins_like_a_stop_text_is_held_back_and_then_given_out() -> None:
    stream = TextStream(byte_decode, ("\n\nQ",))
    assert [stream.push(byte) for byte in b"a\n\nb"] == ["a", "", "", "\n\nb"]
    assert [stream.push(byte) for byte in b"\n\n"] == ["", ""]
    assert stream.finish() == "\n\n"
    assert not stream.stopped


def test_of_several_stop_texts_the_earliest_in_the_text_counts() -> None:
    _, stream = run(b"one two three", "two three", "wo")
    assert stream.text == "one t"


def test_a_stop_text_can_be_found_in_what_was_held_back_for_a_broken_character() -> None:
    stream = TextStream(byte_decode, ("x\N{REPLACEMENT CHARACTER}",))
    pieces = [stream.push(byte) for byte in b"ax\xe2"]
    assert pieces == ["a", "", ""]
    assert stream.finish() == ""
    assert stream.stopped
    assert stream.text == "a"


def test_random_texts_never_leak_a_stop_and_are_cut_where_plain_search_cuts_them() -> None:
    chance = random.Random(3)  # noqa: S311  not for secrets
    for _ in range(300):
        text = "".join(chance.choice("abé") for _ in range(30))
        stops = tuple("".join(chance.choice("abé") for _ in range(chance.randint(2, 5))) for _ in range(3))
        _, stream = run(text.encode(), *stops)
        # The text grows token by token, so the stop text that is complete first decides.
        ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
        first = min(end for end, _ in ends) if ends else None
        expected = text if first is None else text[: min(start for end, start in ends if end == first)]
        assert stream.text == expected
