"""An adapter in an engine: its state, its proof, and who uses it. Knows no names but its own, and no store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime

import structlog

from services.common.errors import FailedPrecondition, TunetrialError, Unavailable
from services.generator import verification
from services.generator.domain import Engine, Model, Replica, State

_log = structlog.get_logger()


class HeldAdapter:
    """Answers only from replicas on which it is proven."""

    def __init__(self, name: str, engine: Engine, uri: str, files: verification.AdapterFiles, tolerance: float) -> None:
        self.name, self.engine, self.uri, self.files = name, engine, uri, files
        self.leaving = False
        self._tolerance = tolerance
        self._evidence: verification.Evidence | None = None
        self._rejection: TunetrialError | None = None
        self._proven: frozenset[str] = frozenset()
        """Identities of the replicas on which it is proven."""
        self._refused: frozenset[str] = frozenset()
        """Those on which the proof failed: not tried again until somebody asks."""
        self._epoch = 0
        """The engine's when it was last looked at."""
        self._load_time = datetime.now(UTC)
        self._users = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._checking = asyncio.Lock()

    @property
    def state(self) -> State:
        """Where it stands."""
        if self._proven:
            return State.VERIFIED
        return State.LOADED if self._rejection is None else State.REJECTED

    @property
    def model(self) -> Model:
        """What ListModels says of it."""
        base = self.engine.base
        proof = self._evidence.proof if self._evidence is not None else None
        return Model(
            name=self.name,
            base=base.name,
            uri=self.uri,
            weights_sha256=self.files.weights_sha256,
            context_tokens=base.context_tokens,
            load_time=self._load_time,
            state=self.state,
            proof=proof,
            engine=base.engine,
            rejection=self._rejection,
        )

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps it in place meanwhile. Raises FailedPrecondition ADAPTER_NOT_VERIFIED."""
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

    async def assured(self) -> frozenset[str]:
        """Identities of the replicas that may answer for it. Looks again when one may be another process than it was; raises
        FailedPrecondition ADAPTER_NOT_VERIFIED then, and what the engine answered meanwhile must be thrown away.
        """
        if self._epoch != self.engine.epoch:
            async with self._checking:
                epoch = self.engine.epoch
                if self._epoch != epoch and self._evidence is not None:
                    for replica in sorted(self._proven):
                        if not await verification.still_applied(self.engine, self.name, self._evidence, replica):
                            self._proven, self._rejection = frozenset(), _not_applied(self.name)
                self._epoch = epoch
        self._check()
        return self._proven

    async def prove(self) -> None:
        """The proof on all that runs now. Raises what speaks against it; the state says the same."""
        async with self._checking:
            self._proven, self._refused, self._rejection = frozenset(), frozenset(), None
            try:
                await self._prove_on(_identities(await self.engine.replicas()))
            except TunetrialError as error:
                self._rejection = error
                raise

    async def restore(self, replicas: tuple[Replica, ...]) -> None:
        """Loads and proves it on those of `replicas` that are new; on those that are left it goes on. The state says how that went."""
        now = _identities(replicas)
        self._proven &= now
        new = now - self._proven - self._refused
        if not new:
            return
        async with self._checking:
            try:
                missing = frozenset(each.identity for each in replicas if each.identity in new and self.name not in each.adapters)
                if missing:
                    await self.engine.load_adapter(self.name, self.files.folder, missing)
                await self._prove_on(new)
            except TunetrialError as error:
                self._rejection = error
                self._refused |= frozenset() if isinstance(error, Unavailable) else new
                _log.warning("an adapter is not proven", adapter=self.name, on=sorted(new), reason=error.reason, message=error.message)
            else:
                _log.info("adapter proven again", adapter=self.name, on=sorted(new))

    async def _prove_on(self, replicas: frozenset[str]) -> None:
        epoch = self.engine.epoch
        evidence = await verification.prove(self.engine, self.name, self.files.canaries, self._tolerance, sorted(replicas))
        self._evidence = evidence
        failure = verification.failure(evidence.proof, self.name)
        if failure is not None:
            raise failure
        self._proven |= replicas
        self._epoch, self._rejection = epoch, None

    def _check(self) -> None:
        if self._proven:
            return
        why = f"{self.state.name}, {self.state.value}" + (f": {self._rejection.message}" if self._rejection is not None else "")
        message = "adapter {name} does not answer: {why}"
        raise FailedPrecondition("ADAPTER_NOT_VERIFIED", message, name=self.name, why=why, state=self.state.name)


def _identities(replicas: tuple[Replica, ...]) -> frozenset[str]:
    return frozenset(replica.identity for replica in replicas)


def _not_applied(name: str) -> FailedPrecondition:
    message = "adapter {name} is not applied any more: its engine answers like the base"
    return FailedPrecondition("ADAPTER_CHANGES_NOTHING", message, name=name)
