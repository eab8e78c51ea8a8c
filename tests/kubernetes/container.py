"""A pod's container as a process of this machine. Knows no API.

There are no images and no mounts: `python` and `torchrun` are those of the tests, and paths under a mount are put in the place of others
before the process starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # the library ships no types

_ROOT = Path(__file__).parents[2]
_PROGRAMS = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}
_KEPT_LINES, _KEPT_BYTES = 80, 2048
"""Of its log, in what is said of its end."""


class Container:
    """Runs from `start` to its end; `lines` is its log."""

    def __init__(self, spec: Mapping[str, Any], mounts: Mapping[str, Path], variables: Mapping[str, str]) -> None:
        self._spec, self._mounts = spec, mounts
        self._variables = {name: self._here(value) for name, value in variables.items()}
        self.lines: list[tuple[datetime, str]] = []
        self.started_at = self.ended_at = datetime.min.replace(tzinfo=UTC)
        self.started = asyncio.Event()
        self.exit_code: int | None = None
        """As a shell tells it; None while it runs."""
        self._process: asyncio.subprocess.Process | None = None

    @property
    def last_words(self) -> str:
        """What is said of its end where it failed."""
        return "\n".join(line for _, line in self.lines[-_KEPT_LINES:])[-_KEPT_BYTES:] if self.exit_code else ""

    async def run(self) -> None:
        """Returns when it has ended and all that it wrote was read."""
        program, *words = (self._filled_in(word) for word in self._spec["command"])
        self._process = await asyncio.create_subprocess_exec(
            *(*_PROGRAMS.get(program, [program]), *words),
            # What the image would bring: the code and where programs are.
            env={**self._variables, "PATH": os.environ["PATH"], "PYTHONPATH": str(_ROOT)},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=_ROOT, start_new_session=True, limit=2**20,
        )  # fmt: skip
        self.started_at = datetime.now(UTC)
        self.started.set()
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append((datetime.now(UTC), line.decode(errors="replace").rstrip("\n")))
        code = await self._process.wait()
        self.ended_at = datetime.now(UTC)
        self.exit_code = code if code >= 0 else 128 - code

    def terminate(self) -> None:
        """SIGTERM to its first process, as every runtime does."""
        self._send(signal.SIGTERM, everyone=False)

    def kill(self) -> None:
        """SIGKILL to all of them."""
        self._send(signal.SIGKILL, everyone=True)

    def _send(self, number: int, *, everyone: bool) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self._process.pid)
            for process in (*(first.children(recursive=True) if everyone else ()), first):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def _filled_in(self, word: str) -> str:
        return self._here(re.sub(r"\$\((\w+)\)", lambda found: self._variables[found[1]], word))

    def _here(self, word: str) -> str:
        """A path in the container as the path on this machine; any other word as it is."""
        for mount, folder in sorted(self._mounts.items(), key=lambda one: -len(one[0])):  # the innermost is what is seen
            if word == mount or word.startswith(f"{mount}/"):
                return f"{folder}{word.removeprefix(mount)}"
        return word
