"""Which replica of a remote engine gets the next request. Knows no protocol."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from services.common.errors import Unavailable

Client = TypeVar("Client")

_SHUNNED_S = 5.0
"""A replica that failed is asked last for so long."""


class Remote(Generic[Client]):
    """One process of an engine, by its address and the client that calls it."""

    def __init__(self, url: str, client: Client) -> None:
        self.url, self.client = url, client
        self.identity = ""
        """What it called itself when it was last looked at; empty while it is away."""
        self.busy = 0
        self._failed = -_SHUNNED_S

    @property
    def shunned(self) -> bool:
        """Whether it failed a moment ago."""
        return time.monotonic() - self._failed < _SHUNNED_S

    def failed(self) -> None:
        """To be told when it could not be reached."""
        self._failed = time.monotonic()

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

    def to_try(self, among: frozenset[str]) -> list[Remote[Client]]:
        """Those of these identities (empty: any that was there), the one with least to do first. Raises Unavailable ENGINE_UNAVAILABLE."""
        known = [each for each in self.all if each.identity and (not among or each.identity in among)]
        if not known:
            raise away(self._name, "none of its replicas that could answer is there")
        return sorted(known, key=lambda each: (each.shunned, each.busy))

    def named(self, identity: str) -> Remote[Client]:
        """The one of this identity. Raises Unavailable ENGINE_UNAVAILABLE."""
        for each in self.all:
            if each.identity == identity:
                return each
        raise away(self._name, "the replica that was asked is another process by now")


class NotReached(Unavailable):
    """A request that never arrived: another replica may have it without anything being done twice."""


class Broken(Unavailable):
    """A connection that broke before anything came back: the request may have been at work."""


def away(name: str, why: str, kind: type[Unavailable] = Unavailable) -> Unavailable:
    """The error for an engine that cannot be reached."""
    return kind("ENGINE_UNAVAILABLE", "the engine of model {name} is away: {why}", name=name, why=why, retry_after_s=1)


def worth_another(error: Unavailable, earlier: Unavailable | None) -> bool:
    """Whether another replica may have a request that failed so: it did not arrive, or a connection broke for the first time.

    What broke once may break every replica, and one that is slow is still at work.
    """
    return isinstance(error, NotReached) or (isinstance(error, Broken) and not isinstance(earlier, Broken))
