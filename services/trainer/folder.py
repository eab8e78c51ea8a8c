"""The trainer's folder, which belongs to one service at a time. Knows not what is in it."""

from __future__ import annotations

import fcntl
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
