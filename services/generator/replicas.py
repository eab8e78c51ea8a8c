"""Which replica of a remote engine gets the next request, and which of them are there. Knows no protocol."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from services.common.errors import TunetrialError, Unavailable
from services.generator.domain import Replica, Speaker

Client = TypeVar("Client")

_LOOK_S, _FIRST_LOOK_S = 2.0, 10.0
"""An engine that says nothing of itself for so long is too busy to, or hangs. A look is two requests, and must end before a probe of health
does; of one that was never seen nothing is known that could be kept."""
_GRACE_S = 30.0
"""A replica that was seen so long ago is still taken for there while it is only slow."""
_SHUNNED_S = 5.0
"""A replica that failed is asked last for so long."""


class Answer(Protocol):
    """What a replica gives to one request, as it comes in."""

    @property
    def begun(self) -> bool:
        """Whether any piece of text was given out."""


AnswerT = TypeVar("AnswerT", bound=Answer)


class Remote(Generic[Client]):
    """One process of an engine, by its address and the client that calls it."""

    def __init__(self, url: str, client: Client) -> None:
        self.url, self.client = url, client
        self.busy = 0
        self._replica: Replica | None = None
        self._seen = self._failed = -_GRACE_S

    @property
    def identity(self) -> str:
        """What it called itself when it was last seen; empty while it is away."""
        return "" if self._replica is None else self._replica.identity

    @property
    def look_s(self) -> float:
        """How long one request of a look may take."""
        return _FIRST_LOOK_S if self._replica is None else _LOOK_S

    @property
    def shunned(self) -> bool:
        """Whether it failed a moment ago."""
        return time.monotonic() - self._failed < _SHUNNED_S

    def loaded(self, adapter: str) -> None:
        """To be told when it has got an adapter, which a look from before does not show."""
        if self._replica is not None:
            self._replica = replace(self._replica, adapters=self._replica.adapters | {adapter})

    def failed(self) -> None:
        """To be told when it could not be reached."""
        self._failed = time.monotonic()

    def found(self, look: Replica | TunetrialError) -> Replica | None:
        """To be told how a look at it went; what it is then, None when it is away. One that is only slow is what it was, for a while."""
        if isinstance(look, Replica):
            self._replica, self._seen = look, time.monotonic()
        elif not isinstance(look, Slow) or time.monotonic() - self._seen > _GRACE_S:
            self._replica = None
        return self._replica

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Counts a request while it lasts."""
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1


class Remotes(Generic[Client]):
    """All replicas of one engine."""

    def __init__(self, name: str, clients: Mapping[str, Client]) -> None:
        """`clients` by address; `name` is that of the base, for errors."""
        self._name = name
        self.all = tuple(Remote(url, client) for url, client in clients.items())

    async def look(self, at: Callable[[Remote[Client]], Awaitable[Replica]]) -> tuple[Replica, ...]:
        """Those that are there. Raises what `at` raised about the first one when there is none."""

        async def one(remote: Remote[Client]) -> Replica | TunetrialError:
            try:
                return await at(remote)
            except TunetrialError as error:
                return error

        looks = await asyncio.gather(*(one(remote) for remote in self.all))
        found = [remote.found(look) for remote, look in zip(self.all, looks, strict=True)]
        there = tuple(replica for replica in found if replica is not None)
        if not there:
            raise next(look for look in looks if isinstance(look, TunetrialError))
        return there

    async def ask(
        self, among: frozenset[str], begin: Callable[[Remote[Client]], tuple[AnswerT, AsyncGenerator[str, None]]]
    ) -> AsyncGenerator[Speaker | str | AnswerT, None]:
        """Who is asked, pieces of text, then the answer they belong to.

        Until text has come, a replica that cannot be reached is left for another one, and what broke with its connection is sent once more.

        `among` are the identities that may answer (empty: any). Raises Unavailable ENGINE_UNAVAILABLE, and what the replica raises.
        """
        failed: Unavailable | None = None
        broken = False
        remotes = self._to_try(among)
        while remotes:
            remote = remotes.pop(0)
            yield Speaker(remote.identity)
            answer, pieces = begin(remote)
            try:
                with remote.at_work():
                    async with contextlib.aclosing(pieces):
                        async for piece in pieces:
                            yield piece
            except Unavailable as error:
                remote.failed()
                # One that is slow is still at work, and what broke twice may break every replica.
                if answer.begun or not isinstance(error, NotReached | Broken) or (broken and isinstance(error, Broken)):
                    raise
                if isinstance(error, Broken):
                    broken = True
                    remotes = remotes or [remote]  # it may only have closed a connection that lay idle
                failed = error
            else:
                yield answer
                return
        raise failed or away(self._name, "no replica answered")

    def named(self, identity: str) -> Remote[Client]:
        """The one of this identity. Raises Unavailable ENGINE_UNAVAILABLE."""
        for each in self.all:
            if each.identity == identity:
                return each
        raise away(self._name, "the replica that was asked is another process by now")

    def _to_try(self, among: frozenset[str]) -> list[Remote[Client]]:
        """Those that may answer, the one with least to do first."""
        known = [each for each in self.all if each.identity and (not among or each.identity in among)]
        if not known:
            raise away(self._name, "none of its replicas that could answer is there")
        return sorted(known, key=lambda each: (each.shunned, each.busy))


class NotReached(Unavailable):
    """A request that never arrived: another replica may have it without anything being done twice."""


class Broken(Unavailable):
    """A connection that broke before anything came back: the request may have been at work."""


class Slow(Unavailable):
    """A request that was not answered in time: it may still be at work."""


def away(name: str, why: str, kind: type[Unavailable] = Unavailable) -> Unavailable:
    """The error for an engine that cannot be reached."""
    return kind("ENGINE_UNAVAILABLE", "the engine of model {name} is away: {why}", name=name, why=why, retry_after_s=1)
