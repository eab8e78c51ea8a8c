"""All real servers of a test run, in a folder that goes away with it. Knows no retriever."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.real.elastic_node import Node
from tests.real.elastic_release import RELEASES, Installed, install


class ElasticServers:
    """Installs each release when it is first needed. As a context manager: kills what still runs, and removes all files."""

    def __init__(self) -> None:
        # Not pytest's own folder: only its owner may enter that one, and as root the servers run as somebody else.
        self._folder = Path(tempfile.mkdtemp(prefix="tunetrial-elasticsearch-"))
        self._folder.chmod(0o755)
        self._installed: dict[str, Installed] = {}
        self._nodes: list[Node] = []

    def make(self, major: str, *, secured: bool = False, **settings: object) -> Node:
        """A node of release "8" or "9" that is not running yet; see `Node.make`."""
        if major not in self._installed:
            self._installed[major] = install(RELEASES[major], self._folder)
        node = Node.make(self._installed[major], self._folder / f"node-{len(self._nodes)}", secured=secured, **settings)
        self._nodes.append(node)
        return node

    @contextmanager
    def running(self, major: str, *, secured: bool = False, **settings: object) -> Iterator[Node]:
        """Such a node, running."""
        node = self.make(major, secured=secured, **settings)
        node.start()
        try:
            yield node
        finally:
            node.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for node in self._nodes:
            node.kill()
        shutil.rmtree(self._folder)
