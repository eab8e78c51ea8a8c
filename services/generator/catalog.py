"""What is served under which name: bases, adapters with their proof, aliases. Knows engines and stores by their ports."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import structlog

from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, TunetrialError, Unavailable
from services.generator import verification
from services.generator.adapter_cache import AdapterCache
from services.generator.adapter_sources import AdapterSources, is_that
from services.generator.admission import Admission
from services.generator.domain import AliasChange, Engine, Model, ModelStore, Placed, State
from services.generator.held_adapter import HeldAdapter

_log = structlog.get_logger()

_PAGE, _LONGEST_PAGE = 100, 1000
_NAME = re.compile(r"[A-Za-z0-9._/-]{1,200}")


@dataclass(frozen=True, slots=True)
class Served:
    """An engine, the door to it, and what lets its adapters change one after another."""

    engine: Engine
    admission: Admission
    changing: asyncio.Lock
    mixing: set[str] = field(default_factory=set)
    """Replicas, by their identities, that a proof has seen to answer as their base with an adapter."""
    seen: set[str] = field(default_factory=set)
    """Replicas that were there at the last look."""

    async def own_answers(self, among: frozenset[str]) -> frozenset[str]:
        """`among`, for the base. Raises FailedPrecondition ENGINE_MIXES_MODELS where its answers may be an adapter's."""
        if self.mixing & (among or self.seen):
            message = (
                "model {name} does not answer: its engine was seen to answer for it with an adapter. Start the engine anew; vLLM on a CPU "
                "does so once all of --max-loras were in use"
            )
            raise FailedPrecondition("ENGINE_MIXES_MODELS", message, name=self.engine.base.name)
        return among


@dataclass(frozen=True, slots=True)
class Route:
    """Where a name leads: the model's own name, its engine, and the adapter on it (None: the base itself)."""

    name: str
    engine: Engine
    admission: Admission
    adapter: str | None
    assured: Callable[[frozenset[str]], Awaitable[frozenset[str]]]
    """Replicas that may answer (none: any), given those that might have meanwhile; raises when what runs is not proven to be this model."""
    virtual_tokens: int = 0
    """Tokens of the context that a soft prompt takes."""

    @property
    def context_tokens(self) -> int:
        """Longest prompt and answer together; 0 when unknown."""
        return self.engine.base.context_tokens - self.virtual_tokens


class Catalog:
    """All models by name. A name that is not here is an error, never another model."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        store: ModelStore,
        *,
        uri_roots: str,
        tolerance: float,
        queue_limit: int,
        put_back: Literal["all", "aliased"] = "all",
        cache: AdapterCache | None = None,
    ) -> None:
        """`engines` by the names of their bases; `put_back` says which adapters are served again after a restart. Contacts nothing yet.

        Without `cache`, adapters come from folders only.
        """
        self._served = {
            name: Served(engine, Admission(name, engine.capacity, queue_limit), asyncio.Lock()) for name, engine in engines.items()
        }
        self._put_back = put_back
        self._store, self._sources, self._tolerance = store, AdapterSources(uri_roots, cache), tolerance
        self._adapters: dict[str, HeldAdapter] = {}
        self._aliases: dict[str, AliasChange] = {}
        # Changes of names happen one after another and never wait for an engine; generation never waits for them.
        self._names = asyncio.Lock()
        self._watches: list[asyncio.Task[None]] = []
        self._prepared = False

    async def prepare(self, watch_s: float = 5.0) -> None:
        """Makes all engines ready, and looks after them every `watch_s` seconds: what was served before is so again, soon."""
        await self._store.open()
        for served in self._served.values():
            await served.engine.prepare()
        for alias, change in (await self._store.current()).items():
            if alias in self._served:
                _log.error("an alias is left out: a base has its name now", alias=alias, target=change.target)
            else:
                self._aliases[alias] = change
        aliased = {change.target for change in self._aliases.values()}
        for placed in await self._store.adapters():
            if self._put_back == "all" or placed.name in aliased:
                await self._hold(placed)
        self._prepared = True
        self._watches = [asyncio.create_task(self._look_after(served, watch_s)) for served in self._served.values()]

    async def ready(self) -> None:
        """Raises Unavailable ENGINE_UNAVAILABLE while no engine can work."""
        looks = [asyncio.create_task(served.engine.replicas()) for served in self._served.values()]
        trouble: TunetrialError | None = None
        try:
            for look in asyncio.as_completed(looks):
                try:
                    await look
                except TunetrialError as error:
                    trouble = error
                else:
                    return
        finally:
            for each in looks:
                each.cancel()
            await asyncio.gather(*looks, return_exceptions=True)
        if trouble is not None:
            raise trouble

    async def close(self) -> None:
        """Ends all work of all engines."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        for served in self._served.values():
            await served.engine.close()
        await self._store.close()

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Route]:
        """The model of a name, kept in place while in use.

        Raises NotFound MODEL_NOT_FOUND, FailedPrecondition ADAPTER_NOT_VERIFIED, Unavailable ADAPTER_NOT_READY.
        """
        self._check_prepared()
        target, how = self._follow(name)
        served = self._served.get(target)
        if served is not None:
            yield Route(target, served.engine, served.admission, None, served.own_answers)
            return
        adapter = self._adapter(target, how)
        with adapter.in_use():
            yield Route(target, adapter.engine, self._home(adapter).admission, target, adapter.assured, adapter.files.virtual_tokens)

    def models(self) -> list[Model]:
        """Bases first, then adapters, then aliases, each by name. Those of an engine that was never there are left out."""
        bases = [_base_model(each.engine) for _, each in sorted(self._served.items()) if _is_ready(each.engine)]
        held = [adapter.model for _, adapter in sorted(self._adapters.items()) if not adapter.leaving and _is_ready(adapter.engine)]
        return bases + held + [self._alias_model(alias) for alias in sorted(self._aliases)]

    def page(self, size: int | None, token: str) -> tuple[list[Model], str]:
        """Up to `size` models (None: 100) after the one that `token` names, and the token of the next page, "" at the end.

        Raises InvalidArgument PAGE_SIZE_INVALID, PAGE_TOKEN_INVALID.
        """
        size = _PAGE if size is None else size
        if not 1 <= size <= _LONGEST_PAGE:
            raise InvalidArgument("PAGE_SIZE_INVALID", "page_size must be 1 to {most}", most=_LONGEST_PAGE, field="page_size")
        after = (-1, "")
        if token:
            rank, _, name = token.partition(":")
            if rank not in {"0", "1", "2"} or not name:
                raise InvalidArgument("PAGE_TOKEN_INVALID", "page_token must come from the response before", field="page_token")
            after = (int(rank), name)
        rest = [model for model in self.models() if (_rank(model), model.name) > after]
        page = rest[:size]
        return page, f"{_rank(page[-1])}:{page[-1].name}" if len(rest) > size else ""

    async def load(self, name: str, uri: str, base: str) -> Model:
        """Loads and proves an adapter; on failure nothing stays. Errors: those of LoadAdapter in the contract."""
        _check_name(name, "ADAPTER_NAME_INVALID", "name")
        served = self._base(base)
        engine = served.engine
        files = await asyncio.to_thread(self._sources.read, uri, self._folders())
        async with served.changing:
            held = await self._take_name(name, HeldAdapter(name, engine, uri, files, self._tolerance, served.mixing))
            if held is not None:
                return await _again(held, engine, files)
            adapter = self._adapters[name]
            try:
                files.check(engine.base)
                await adapter.put_in()
                await adapter.prove()
                await asyncio.shield(self._store.place(Placed(name, uri, engine.base.name, files.weights_sha256, files.config_sha256)))
            except BaseException:
                try:
                    await asyncio.shield(self._give_up(adapter))
                except TunetrialError as error:
                    _log.error("an adapter could not be taken out", adapter=name, message=error.message)
                raise
        return adapter.model

    async def _take_name(self, name: str, adapter: HeldAdapter) -> HeldAdapter | None:
        """Gives the name to the adapter; the one that has it already, instead."""
        async with self._names:
            self._check_prepared()
            if name in self._served or name in self._aliases:
                raise AlreadyExists("ADAPTER_NAME_TAKEN", "{name} is the name of a base or an alias already", name=name)
            held = self._adapters.get(name)
            if held is None:
                self._adapters[name] = adapter
            return held

    async def _give_up(self, adapter: HeldAdapter) -> None:
        """Nothing stays of an adapter: the name goes first, so that nobody is sent to an engine that has it no more."""
        async with self._names:
            self._adapters.pop(adapter.name, None)
        try:
            await self._store.displace(adapter.name)
        finally:
            await adapter.engine.unload_adapter(adapter.name)

    async def unload(self, name: str) -> None:
        """Takes an adapter out when its requests have ended; new ones are refused from now on."""
        async with self._names:
            self._check_prepared()
            adapter = self._adapter(name, name)
            pointing = sorted(alias for alias, change in self._aliases.items() if change.target == name)
            if pointing:
                raise FailedPrecondition(
                    "ADAPTER_HAS_ALIAS", "alias {alias} stands for {name}: point it elsewhere first", alias=", ".join(pointing), name=name
                )
            adapter.leaving = True
        try:
            await adapter.unused()
        except BaseException:
            adapter.leaving = False
            raise
        await asyncio.shield(self._let_go(adapter))

    async def _let_go(self, adapter: HeldAdapter) -> None:
        async with self._home(adapter).changing:
            await self._give_up(adapter)

    async def verify(self, name: str) -> Model:
        """Repeats the proof; the adapter is VERIFIED or REJECTED then."""
        self._check_prepared()
        adapter = self._adapter(name, name)
        async with self._home(adapter).changing:
            with contextlib.suppress(FailedPrecondition):
                await adapter.prove()
        return adapter.model

    async def set_alias(self, alias: str, target: str, expected: str | None) -> tuple[Model, tuple[AliasChange, ...]]:
        """Points an alias at a base or a verified adapter. Raises Aborted ALIAS_CHANGED when `expected` is not its target now."""
        _check_name(alias, "ALIAS_INVALID", "alias")
        async with self._names:
            self._check_prepared()
            if alias in self._served or alias in self._adapters:
                raise AlreadyExists("ALIAS_NAME_TAKEN", "{alias} is the name of a base or an adapter", alias=alias)
            if target not in self._served and self._adapter(target, target).state is not State.VERIFIED:
                raise FailedPrecondition("ADAPTER_NOT_VERIFIED", "adapter {name} is not proven: verify it first", name=target)
            history = await asyncio.shield(self._keep_alias(alias, target, expected))
        return self._alias_model(alias), history

    async def _keep_alias(self, alias: str, target: str, expected: str | None) -> tuple[AliasChange, ...]:
        history = await self._store.set(alias, target, expected)
        self._aliases[alias] = history[0]
        return history

    async def roll_back(self, alias: str, expected: str | None) -> tuple[Model, tuple[AliasChange, ...]]:
        """Points an alias at what it stood for before its last change. Errors: those of RollbackAlias in the contract."""
        history = await self._store.history(alias)
        if not history:
            raise NotFound("ALIAS_NOT_FOUND", "there is no alias {alias}", alias=alias, field="alias")
        earlier = next((change.target for change in history if change.target != history[0].target), None)
        if earlier is None:
            raise FailedPrecondition("ALIAS_HAS_NO_HISTORY", "alias {alias} never stood for anything else", alias=alias)
        return await self.set_alias(alias, earlier, history[0].target if expected is None else expected)

    async def _look_after(self, served: Served, interval_s: float) -> None:
        while True:
            try:
                async with served.changing:
                    replicas = await served.engine.replicas()
                    served.seen.clear()
                    served.seen.update(replica.identity for replica in replicas)
                    for adapter in [each for each in self._adapters.values() if each.engine is served.engine]:
                        if not adapter.leaving and self._adapters.get(adapter.name) is adapter:
                            await adapter.restore(replicas)
            except TunetrialError:
                pass  # its requests say so, and health
            except Exception:
                _log.exception("looking after an engine failed")
            await asyncio.sleep(interval_s)

    async def _hold(self, placed: Placed) -> None:
        """An adapter that was served before. The watch proves it; one that cannot be found as it was is left out, and the log says why."""
        served = self._served.get(placed.base)
        if served is None:
            _log.error("an adapter is left out: its base is not served any more", adapter=placed.name, base=placed.base)
            return
        try:
            files = await asyncio.to_thread(self._sources.again, placed, self._folders())
        except TunetrialError as error:
            _log.error("an adapter is left out", adapter=placed.name, reason=error.reason, message=error.message)
            return
        if not is_that(files, placed):
            _log.error("an adapter is left out: there is another one at its address now", adapter=placed.name, uri=placed.uri)
            return
        self._adapters[placed.name] = HeldAdapter(placed.name, served.engine, placed.uri, files, self._tolerance, served.mixing)

    def _folders(self) -> set[Path]:
        return {adapter.files.folder for adapter in self._adapters.values()}

    def _check_prepared(self) -> None:
        if not self._prepared:
            raise Unavailable("ENGINE_UNAVAILABLE", "the service is starting: try again soon", retry_after_s=2)

    def _follow(self, name: str) -> tuple[str, str]:
        alias = self._aliases.get(name)
        return (name, name) if alias is None else (alias.target, f"{alias.target}, for which alias {name} stands,")

    def _adapter(self, name: str, how: str) -> HeldAdapter:
        adapter = self._adapters.get(name)
        if adapter is None or adapter.leaving:
            raise NotFound(
                "MODEL_NOT_FOUND",
                "no model {how} is served: load it, or ask ListModels for what is there",
                how=how,
                name=name,
                field="model",
            )
        return adapter

    def _home(self, adapter: HeldAdapter) -> Served:
        return next(served for served in self._served.values() if served.engine is adapter.engine)

    def _base(self, base: str) -> Served:
        if not base and len(self._served) == 1:
            return next(iter(self._served.values()))
        if base not in self._served:
            names = ", ".join(sorted(self._served))
            raise NotFound("MODEL_NOT_FOUND", "no base {name!r} is served: there are {served}", name=base, served=names, field="base")
        return self._served[base]

    def _alias_model(self, alias: str) -> Model:
        change = self._aliases[alias]
        target = next((model for model in self._targets(change.target)), None)
        # Nothing is known of a target that is not loaded.
        base, context, engine = ("", 0, "") if target is None else (target.base, target.context_tokens, target.engine)
        return Model(alias, base, "", "", context, change.time, target=change.target, engine=engine)

    def _targets(self, name: str) -> Iterator[Model]:
        if name in self._served and _is_ready(self._served[name].engine):
            yield _base_model(self._served[name].engine)
        elif name in self._adapters and _is_ready(self._adapters[name].engine):
            yield self._adapters[name].model


async def _again(held: HeldAdapter, engine: Engine, files: verification.AdapterFiles) -> Model:
    hashes = (files.weights_sha256, files.config_sha256)
    if held.leaving or held.engine is not engine or (held.files.weights_sha256, held.files.config_sha256) != hashes:
        raise AlreadyExists(
            "ADAPTER_NAME_TAKEN",
            "{name} is another adapter, with weights {held}: unload it or take another name",
            name=held.name,
            held=held.files.weights_sha256,
        )
    if held.state is not State.VERIFIED:
        await held.prove()
    return held.model


def _check_name(name: str, reason: str, field: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidArgument(reason, "a name has 1 to 200 letters, digits and ._/- only: {name}", name=name, field=field)


def _is_ready(engine: Engine) -> bool:
    try:
        return bool(engine.base)
    except Unavailable:
        return False


def _base_model(engine: Engine) -> Model:
    base = engine.base
    return Model(base.name, base.name, base.uri, base.weights_sha256, base.context_tokens, base.load_time, engine=base.engine)


def _rank(model: Model) -> int:
    return 2 if model.target else 0 if model.state is None else 1
