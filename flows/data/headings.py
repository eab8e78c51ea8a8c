"""Paths of headings: `Methods > Data`. Knows no format of a document."""

from __future__ import annotations

from collections.abc import Iterable

SEPARATOR = " > "


def heading_path(headings: Iterable[str], title: str) -> str:
    """Headings from the outermost in, on one line each; without blank ones and those that only repeat the document's title."""
    names = (" ".join(heading.split()) for heading in headings)
    own = " ".join(title.split())
    return SEPARATOR.join(name for name in names if name not in ("", own))


class Outline:
    """Headings as they come in a document, with the path to where it has come."""

    def __init__(self) -> None:
        self._above: list[tuple[int, str]] = []

    def enter(self, heading: str, level: int) -> tuple[str, ...]:
        """The path below this heading. `level` counts from 1, the outermost; a heading ends all of its own level and deeper."""
        self._above = [*((depth, name) for depth, name in self._above if depth < level), (level, heading)]
        return tuple(name for _, name in self._above)
