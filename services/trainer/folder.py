"""The trainer's folder, which belongs to one service at a time, and where in it checkpoints lie. Knows not what is in them."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """The folder, made if need be and locked while the context lasts; the system frees the lock of a process that dies.

    Raises SystemExit when another trainer has it: two would start each job twice.
    """
    (folder / "adapters").mkdir(parents=True, exist_ok=True)
    (folder / "jobs").mkdir(exist_ok=True)
    with (folder / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another trainer uses {folder}: stop it, or set TUNETRIAL_DATA_DIR to another folder") from None
        yield folder


class CheckpointFolders:
    """What interrupted works go on from, each in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, work: str) -> str:
        """Where training processes keep that of a work."""
        return str(self._root / work)

    def discard(self, work: str) -> None:
        """Removes it."""
        shutil.rmtree(self._root / work, ignore_errors=True)
