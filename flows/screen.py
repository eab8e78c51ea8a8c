"""What a person sees of a running trial: bars on a terminal, plain lines elsewhere. Writes to standard error; knows no stage."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bars:
    """One bar a stage, with time left."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[note]}[/]", table_column=None),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.__exit__(kind, error, trace)

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        """A bar begins; a stage that is tried again starts its bar anew."""
        if name in self._tasks:
            self._progress.reset(self._tasks[name], total=total, completed=done)
        else:
            self._tasks[name] = self._progress.add_task(name, total=total, completed=done, note="")

    def advance(self, name: str, count: int = 1, note: str = "") -> None:
        """A bar moves on."""
        task = self._tasks[name]
        self._progress.update(task, advance=count)
        if note:
            self._progress.update(task, note=note)

    def finish(self, name: str, note: str = "") -> None:
        """A bar is full."""
        task = self._tasks[name]
        total = self._progress.tasks[task].total or 1
        self._progress.update(task, total=total, completed=total, note=note)

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(text, highlight=False)


class Lines:
    """A line when a stage begins and ends, and every 15 seconds between: for logs and pipes."""

    def __init__(self, console: Console, every_s: float = 15.0) -> None:
        self._console, self._every_s = console, every_s
        self._begun: dict[str, float] = {}
        self._last: dict[str, float] = {}
        self._counts: dict[str, tuple[int, int | None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def stage(self, name: str, total: int | None = None, done: int = 0) -> None:
        """Says that it begins."""
        self._begun[name] = self._last[name] = time.monotonic()
        self._counts[name] = (done, total)
        self.say(f"{name}: begins" + (f", {total} to do" if total else ""))

    def advance(self, name: str, count: int = 1, note: str = "") -> None:
        """Says how far it is, now and then."""
        done, total = self._counts[name]
        self._counts[name] = (done + count, total)
        now = time.monotonic()
        if now - self._last[name] >= self._every_s:
            self._last[name] = now
            self.say(f"{name}: {done + count}" + (f" of {total}" if total else "") + (f" ({note})" if note else ""))

    def finish(self, name: str, note: str = "") -> None:
        """Says that it ended."""
        self.say(f"{name}: done in {time.monotonic() - self._begun[name]:.1f} s" + (f", {note}" if note else ""))

    def say(self, text: str) -> None:
        """A line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
