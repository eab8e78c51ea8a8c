"""Text from tokens as they come: no broken characters, no stop text, not even its beginning. Knows no model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Collects tokens and gives out text that is certain. The pieces, joined, are `text`.

    A token can hold part of a character, and a leading space can depend on the token before, so a window of tokens is decoded from the last
    certain place, with and without the new token; the difference is new text, held back while it ends in a broken character.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: tuple[str, ...] = ()) -> None:
        self._decode, self._stops = decode, stops
        self._ids: list[int] = []
        self._window, self._read = 0, 0
        self._held = ""
        self._pieces: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """All that was given out."""
        return "".join(self._pieces)

    def push(self, token: int) -> str:
        """The text that this token makes certain; sets `stopped` when a stop text is complete."""
        self._ids.append(token)
        known = self._decode(self._ids[self._window : self._read])
        now = self._decode(self._ids[self._window :])
        if len(now) <= len(known) or now.endswith(_BROKEN):
            return ""
        self._window, self._read = self._read, len(self._ids)
        return self._give(now[len(known) :], last=False)

    def finish(self) -> str:
        """What was held back."""
        if self.stopped:
            return ""
        known = self._decode(self._ids[self._window : self._read])
        return self._give(self._decode(self._ids[self._window :])[len(known) :], last=True)

    def _give(self, new: str, last: bool) -> str:
        # What is held back is the longest end of the text that may begin a stop text, so a stop text lies within `text` whole.
        text = self._held + new
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped = True
            piece, self._held = text[: min(found)], ""
        else:
            keep = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
            piece, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self._pieces.append(piece)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    return next((length for length in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:length])), 0)
