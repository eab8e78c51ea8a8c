"""An engine that only pretends, and a store in memory: for the rules of the domain, without a model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from services.common.errors import Aborted, Unavailable
from services.generator.catalog import Catalog
from services.generator.domain import AliasChange, Base, Canary, Encoded, Finish, Generation, Placed, Prompt, Replica, Speaker, Work

CONTEXT = 100


class Pretender:
    """An engine with a token a character that gives a fixed text in pieces; adapters score as told."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces or ("text",)
        self.work: list[Work] = []
        self.scores: dict[str | None, tuple[float, ...]] = {None: (-1.0, -2.0)}
        self.loaded: list[str] = []
        self.hold: asyncio.Event | None = None
        self.speaker = ""
        """The replica that says that it answers."""
        self.restarts = self.looks = 0
        self.scored: list[str] = []
        """Replicas, as they were asked for scores."""
        self.base_only: set[str] = set()
        """Replicas that answer like the base whoever is asked for."""
        self.mixing: set[str] = set()
        """Replicas that answer all rows of a batch with what its last row asks for."""
        self.running: tuple[Replica, ...] = (Replica("one", frozenset()),)

    @property
    def base(self) -> Base:
        return Base("base", "somewhere", "hash", CONTEXT, datetime.now(UTC), "pretence")

    @property
    def capacity(self) -> int:
        return 4

    def epoch(self, replica: str) -> int | None:
        return self.restarts if replica in {each.identity for each in self.running} else None

    async def prepare(self) -> None: ...

    async def replicas(self) -> tuple[Replica, ...]:
        self.looks += 1
        if not self.running:
            raise Unavailable("ENGINE_UNAVAILABLE", "away")
        return self.running

    async def close(self) -> None: ...

    async def encode(self, prompt: Prompt) -> Encoded:
        text = prompt if isinstance(prompt, str) else "".join(turn.content for turn in prompt)
        return Encoded(prompt, tuple(range(len(text))))

    async def generate(self, work: Work) -> AsyncGenerator[Speaker | str | Generation, None]:
        self.work.append(work)
        if self.speaker:
            yield Speaker(self.speaker)
        if self.hold is not None:
            await self.hold.wait()
        for piece in self.pieces if work.stream else ():
            yield piece
        yield Generation("".join(self.pieces), Finish.END, len(work.encoded.tokens), 3, 1.0, 0.0)

    async def load_adapter(self, adapter: str, folder: Path, among: frozenset[str] = frozenset()) -> None:
        self.loaded.append(adapter)
        self.running = tuple(
            Replica(each.identity, each.adapters | {adapter}) if not among or each.identity in among else each for each in self.running
        )

    async def unload_adapter(self, adapter: str) -> None:
        if adapter in self.loaded:
            self.loaded.remove(adapter)

    async def score(self, rows: Sequence[tuple[str | None, Canary]], replica: str) -> tuple[tuple[float, ...], ...]:
        self.scored.append(replica)
        if replica in self.mixing and len(rows) > 1:
            return tuple(self.scores.get(rows[-1][0], (-1.5, -2.0)) for _ in rows)
        return tuple(self.scores[None] if replica in self.base_only else self.scores.get(adapter, (-1.5, -2.0)) for adapter, _ in rows)


class Remembered:
    """What is to be served, in memory."""

    def __init__(self) -> None:
        self.changes: dict[str, list[AliasChange]] = {}
        self.placed: dict[str, Placed] = {}

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def current(self) -> Mapping[str, AliasChange]:
        return {alias: changes[0] for alias, changes in self.changes.items()}

    async def history(self, alias: str) -> tuple[AliasChange, ...]:
        return tuple(self.changes.get(alias, ()))

    async def set(self, alias: str, target: str, expected: str | None) -> tuple[AliasChange, ...]:
        changes = self.changes.setdefault(alias, [])
        if expected is not None and expected != (changes[0].target if changes else ""):
            raise Aborted("ALIAS_CHANGED", "changed")
        changes.insert(0, AliasChange(target, datetime.now(UTC)))
        return tuple(changes)

    async def adapters(self) -> Sequence[Placed]:
        return list(self.placed.values())

    async def place(self, adapter: Placed) -> None:
        self.placed[adapter.name] = adapter

    async def displace(self, name: str) -> None:
        self.placed.pop(name, None)


def catalog_of(engine: Pretender, roots: str = "") -> Catalog:
    catalog = Catalog({"base": engine}, Remembered(), uri_roots=roots, tolerance=0.05, queue_limit=8)
    catalog._prepared = True  # there is nothing to load, and no watch is wanted
    return catalog
