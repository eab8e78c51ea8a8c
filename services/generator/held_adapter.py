"""An adapter in an engine: its state, its proof, and who uses it. Knows no names but its own, and no store."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import structlog

from services.common.errors import FailedPrecondition, ResourceExhausted, TunetrialError, Unavailable
from services.generator import verification
from services.generator.domain import Engine, HostedModels, Model, Replica, State

_log = structlog.get_logger()

_AGAIN_S = 60.0
"""A replica on which the proof failed is tried again after so long: what was wrong with it may have been mended."""

_FULL = ("MEMORY_EXHAUSTED", "FULL_MODELS_TOO_MANY")
"""Reasons that trying again at once would not change, and that reading a whole model each time would cost."""
_UNTOLD = (Unavailable, ResourceExhausted)
"""An engine that is away or busy says nothing about an adapter."""


class HeldAdapter:
    """Answers only from replicas on which it is proven."""

    def __init__(self, name: str, engine: Engine, uri: str, files: verification.AdapterFiles, tolerance: float, mixing: set[str]) -> None:
        """`mixing` gets the identities of replicas on which a proof shows that the base's answers are not its own."""
        self.name, self.engine, self.uri, self.files = name, engine, uri, files
        self.leaving = False
        self._tolerance, self._mixing = tolerance, mixing
        self._evidence: dict[str, verification.Evidence] = {}
        """By the identities of the replicas on which it is proven."""
        self._epochs: dict[str, int] = {}
        """The same replicas' epochs when they were last looked at."""
        self._refused: dict[str, float] = {}
        """Replicas on which the proof failed, and when (monotonic clock)."""
        self._rejection: TunetrialError | None = None
        self._against: verification.Evidence | None = None
        """What a proof found that failed."""
        self._load_time = datetime.now(UTC)
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._checking = asyncio.Lock()

    @property
    def state(self) -> State:
        """Where it stands."""
        if self._evidence:
            return State.VERIFIED
        return State.LOADED if self._rejection is None or isinstance(self._rejection, _UNTOLD) else State.REJECTED

    @property
    def model(self) -> Model:
        """What ListModels says of it."""
        base = self.engine.base
        evidence = self._evidence.values() or ([self._against] if self._against is not None else [])
        return Model(
            name=self.name,
            base=base.name,
            uri=self.uri,
            weights_sha256=self.files.weights_sha256,
            context_tokens=base.context_tokens - self.files.virtual_tokens,
            load_time=self._load_time,
            state=self.state,
            proof=verification.worst(evidence),
            engine=base.engine,
            rejection=None if self._evidence else self._rejection,
        )

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps it in place meanwhile. Raises FailedPrecondition ADAPTER_NOT_VERIFIED, Unavailable ADAPTER_NOT_READY."""
        self._check()
        self._users += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._idle.set()

    async def unused(self) -> None:
        """Returns when nobody uses it."""
        await self._idle.wait()

    async def assured(self, among: frozenset[str] = frozenset()) -> frozenset[str]:
        """Identities of the replicas that may answer for it. `among` are those that might have answered meanwhile.

        Looks again at a replica that may be another process than it was. Raises FailedPrecondition ADAPTER_NOT_VERIFIED where it is, and
        Unavailable ADAPTER_NOT_READY when one of `among` is there no more: what came meanwhile must be thrown away.
        """
        if self._changed():
            async with self._checking:
                for replica in self._changed():
                    await self._look_again(replica)
        self._check()
        if not among <= self._evidence.keys():
            raise self._not_ready()
        return frozenset(self._evidence)

    def _changed(self) -> list[str]:
        return [replica for replica, epoch in self._epochs.items() if epoch != self.engine.epoch(replica)]

    async def _look_again(self, replica: str) -> None:
        epoch = self.engine.epoch(replica)
        if epoch is None:
            self._forget(replica)
        elif await verification.still_applied(self.engine, self.name, self._evidence[replica], replica):
            self._epochs[replica] = epoch
        else:
            self._forget(replica)
            message = "adapter {name} does not answer: its engine is another process by now, and does not give what was proven"
            self._rejection = FailedPrecondition("ADAPTER_NOT_VERIFIED", message, name=self.name)
            raise self._rejection

    async def put_in(self, among: frozenset[str] = frozenset()) -> None:
        """Loads it into every replica, or those of these identities. Raises what the engine does, FailedPrecondition ADAPTER_REFUSED."""
        model = self.files.hosted_model
        if not model:
            await self.engine.load_adapter(self.name, self.files.folder, among)
        elif isinstance(self.engine, HostedModels):
            await self.engine.load_hosted(self.name, model)
        else:
            message = "{uri} is kept by a provider, and base {base} runs on {engine}: load it on a base with engine openai"
            base = self.engine.base
            raise FailedPrecondition("ADAPTER_REFUSED", message, uri=self.uri, base=base.name, engine=base.engine)

    async def prove(self) -> None:
        """The proof on all that runs now, loaded where it lacks. It answers as before until the proof speaks against it.

        Raises what speaks against it on any replica; the state says the same.
        """
        async with self._checking:
            replicas = await self.engine.replicas()
            self._keep(replica.identity for replica in replicas)
            errors = [error for error in [await self._try(replica) for replica in replicas] if error is not None]
        if errors:
            raise errors[0]

    async def restore(self, replicas: tuple[Replica, ...]) -> None:
        """Loads and proves it on those of `replicas` that are new or lack it; on the others it goes on. The state says how that went."""
        async with self._checking:
            self._keep(replica.identity for replica in replicas if self.name in replica.adapters)
            for replica in replicas:
                tried = self._refused.get(replica.identity)
                if replica.identity in self._evidence or (tried is not None and time.monotonic() - tried < _AGAIN_S):
                    continue
                error = await self._try(replica)
                if error is None:
                    _log.info("adapter proven again", adapter=self.name, on=replica.identity)
                else:
                    told = {"adapter": self.name, "on": replica.identity, "reason": error.reason, "message": error.message}
                    _log.warning("an adapter is not proven", **told)

    async def _try(self, replica: Replica) -> TunetrialError | None:
        """Loads it where it lacks and proves it; what spoke against it."""
        identity, epoch = replica.identity, self.engine.epoch(replica.identity)
        try:
            self.files.check(self.engine.base)
            if self.name not in replica.adapters:
                await self.put_in(frozenset((identity,)))
            if self.files.hosted_model:
                evidence = await verification.prove_by_name(self.engine, self.name, identity)
            else:
                evidence = await verification.prove(self.engine, self.name, self.files.canaries, self._tolerance, identity)
            if (failure := verification.failure(evidence.proof, self.name)) is not None:
                self._against = evidence
                raise failure
        except TunetrialError as error:
            if isinstance(error, verification.MixedModels):
                self._mixing.add(identity)
            self._forget(identity)
            self._rejection = error
            if not isinstance(error, _UNTOLD) or error.reason in _FULL:
                self._refused[identity] = time.monotonic()
            return error
        self._evidence[identity], self._rejection, self._against = evidence, None, None
        self._epochs[identity] = epoch if epoch is not None else -1
        self._refused.pop(identity, None)
        return None

    def _keep(self, identities: Iterable[str]) -> None:
        for gone in self._evidence.keys() - set(identities):
            self._forget(gone)

    def _forget(self, replica: str) -> None:
        self._evidence.pop(replica, None)
        self._epochs.pop(replica, None)

    def _check(self) -> None:
        if self._evidence:
            return
        if self._rejection is None or self.state is State.LOADED:
            raise self._not_ready()
        message = "adapter {name} does not answer: {why}"
        raise FailedPrecondition("ADAPTER_NOT_VERIFIED", message, name=self.name, why=self._rejection.message, state=self.state.name)

    def _not_ready(self) -> Unavailable:
        why = f": {self._rejection.message}" if self._rejection is not None else ""
        message = "adapter {name} does not answer yet: its engine has changed, and it is being proven again{why}"
        return Unavailable("ADAPTER_NOT_READY", message, name=self.name, why=why, retry_after_s=1)
