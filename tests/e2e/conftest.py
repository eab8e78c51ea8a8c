"""Whole trials through the command, on the real services."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from trials import start, wait_for


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home in which the services run, as `tunetrial up` leaves them."""
    folder = tmp_path_factory.mktemp("home")
    process = start("up", "--home", str(folder), cwd=folder)
    try:
        wait_for(lambda: (folder / "stack.json").exists() or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        yield folder
    finally:
        process.terminate()
        process.communicate(timeout=150)
