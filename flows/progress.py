"""How stages say how far they are. Knows no stage and no screen; the command line and tests bring their own listener."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Listener to the course of a trial. Calls come from one thread."""

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        """A stage begins, with so many pieces of work of which `done` are there already; None when it cannot be counted."""

    def advance(self, name: str, count: int = 1, note: str = "") -> None:
        """So many pieces are done; `note` is a short word on what is going on."""

    def finish(self, name: str, note: str = "") -> None:
        """The stage ended well."""

    def say(self, text: str) -> None:
        """A line that people should see."""


class Silent:
    """Listens and says nothing."""

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Nothing."""

    def advance(self, name: str, count: int = 1, note: str = "") -> None:
        """Nothing."""

    def finish(self, name: str, note: str = "") -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""
