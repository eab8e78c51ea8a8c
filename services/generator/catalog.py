"""What is served under which name: bases, adapters with their proof, aliases. Knows engines and stores by their ports."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, TunetrialError
from services.common.security import allowed_path
from services.generator import verification
from services.generator.domain import AliasChange, AliasStore, Engine, Model, Proof, State

_PAGE, _LONGEST_PAGE = 100, 1000
_NAME = re.compile(r"[A-Za-z0-9._/-]{1,200}")


@dataclass(frozen=True, slots=True)
class Route:
    """Where a name leads: the model's own name, its engine, and the adapter on it (None: the base itself)."""

    name: str
    engine: Engine
    adapter: str | None


class _Adapter:
    """An adapter in an engine."""

    def __init__(self, name: str, engine: Engine, uri: str, files: verification.AdapterFiles) -> None:
        self.name, self.engine, self.uri, self.files = name, engine, uri, files
        self.state = State.LOADED
        self.proof: Proof | None = None
        self.load_time = datetime.now(UTC)
        self.users = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.leaving = False


class Catalog:
    """All models by name. A name that is not here is an error, never another model."""

    def __init__(self, engines: Mapping[str, Engine], aliases: AliasStore, uri_roots: str, tolerance: float) -> None:
        self._engines, self._store, self._uri_roots, self._tolerance = dict(engines), aliases, uri_roots, tolerance
        self._adapters: dict[str, _Adapter] = {}
        self._aliases: dict[str, AliasChange] = {}
        # Changes of names happen one after another; generation never waits for them.
        self._changes = asyncio.Lock()

    async def prepare(self) -> None:
        """Reads the aliases and loads the bases."""
        self._aliases = dict(await self._store.current())
        for engine in self._engines.values():
            await engine.prepare()

    async def close(self) -> None:
        """Ends all work of all engines."""
        for engine in self._engines.values():
            await engine.close()

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Route]:
        """The model of a name, kept in place while in use. Raises NotFound MODEL_NOT_FOUND, FailedPrecondition ADAPTER_NOT_VERIFIED."""
        target, how = self._follow(name)
        if target in self._engines:
            yield Route(target, self._engines[target], None)
            return
        adapter = self._adapter(target, how)
        if adapter.state is not State.VERIFIED:
            raise FailedPrecondition(
                "ADAPTER_NOT_VERIFIED",
                "adapter {name} does not answer: {state}",
                name=target,
                state=f"{adapter.state.name}, {adapter.state.value}",
            )
        adapter.users += 1
        adapter.idle.clear()
        try:
            yield Route(target, adapter.engine, target)
        finally:
            adapter.users -= 1
            if not adapter.users:
                adapter.idle.set()

    def models(self) -> list[Model]:
        """Bases first, then adapters, then aliases, each by name."""
        bases = [self._base_model(name) for name in sorted(self._engines)]
        adapters = [_adapter_model(adapter) for _, adapter in sorted(self._adapters.items()) if not adapter.leaving]
        return bases + adapters + [self._alias_model(alias) for alias in sorted(self._aliases)]

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
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                "ADAPTER_NAME_INVALID", "a name has 1 to 200 letters, digits and ._/- only: {name}", name=name, field="name"
            )
        engine = self._engine(base)
        folder = allowed_path(uri, self._uri_roots)
        files = await asyncio.to_thread(verification.read_adapter, folder)
        async with self._changes:
            if name in self._engines or name in self._aliases:
                raise AlreadyExists("ADAPTER_NAME_TAKEN", "{name} is the name of a base or an alias already", name=name)
            held = self._adapters.get(name)
            if held is not None:
                return await self._again(held, engine, files)
            files.check(engine.base)
            adapter = _Adapter(name, engine, uri, files)
            try:
                await engine.load_adapter(name, folder)
                self._adapters[name] = adapter
                await self._prove(adapter)
            except BaseException:
                self._adapters.pop(name, None)
                await asyncio.shield(engine.unload_adapter(name))
                raise
        return _adapter_model(adapter)

    async def unload(self, name: str) -> None:
        """Takes an adapter out when its requests have ended; new ones are refused from now on."""
        async with self._changes:
            adapter = self._adapter(name, name)
            pointing = sorted(alias for alias, change in self._aliases.items() if change.target == name)
            if pointing:
                raise FailedPrecondition(
                    "ADAPTER_HAS_ALIAS", "alias {alias} stands for {name}: point it elsewhere first", alias=", ".join(pointing), name=name
                )
            adapter.leaving = True
        try:
            await adapter.idle.wait()
            async with self._changes:
                await adapter.engine.unload_adapter(name)
                del self._adapters[name]
        except BaseException:
            adapter.leaving = False
            raise

    async def verify(self, name: str) -> Model:
        """Repeats the proof; the adapter is VERIFIED or REJECTED then."""
        async with self._changes:
            adapter = self._adapter(name, name)
            with contextlib.suppress(FailedPrecondition):
                await self._prove(adapter)
        return _adapter_model(adapter)

    async def set_alias(self, alias: str, target: str, expected: str | None) -> tuple[Model, tuple[AliasChange, ...]]:
        """Points an alias at a base or a verified adapter. Raises Aborted ALIAS_CHANGED when `expected` is not its target now."""
        if not _NAME.fullmatch(alias):
            raise InvalidArgument(
                "ALIAS_INVALID", "an alias has 1 to 200 letters, digits and ._/- only: {alias}", alias=alias, field="alias"
            )
        async with self._changes:
            if alias in self._engines or alias in self._adapters:
                raise AlreadyExists("ALIAS_NAME_TAKEN", "{alias} is the name of a base or an adapter", alias=alias)
            if target not in self._engines and self._adapter(target, target).state is not State.VERIFIED:
                raise FailedPrecondition("ADAPTER_NOT_VERIFIED", "adapter {name} is not proven: verify it first", name=target)
            history = await self._store.set(alias, target, expected)
            self._aliases[alias] = history[0]
        return self._alias_model(alias), history

    async def _prove(self, adapter: _Adapter) -> None:
        try:
            adapter.proof = await verification.prove(adapter.engine, adapter.name, adapter.files.canaries, self._tolerance)
            failure = verification.failure(adapter.proof, adapter.name)
        except TunetrialError:
            adapter.state = State.REJECTED
            raise
        adapter.state = State.VERIFIED if failure is None else State.REJECTED
        if failure is not None:
            raise failure

    def _follow(self, name: str) -> tuple[str, str]:
        alias = self._aliases.get(name)
        return (name, name) if alias is None else (alias.target, f"{alias.target}, for which alias {name} stands,")

    def _adapter(self, name: str, how: str) -> _Adapter:
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

    def _engine(self, base: str) -> Engine:
        if not base and len(self._engines) == 1:
            return next(iter(self._engines.values()))
        if base not in self._engines:
            served = ", ".join(sorted(self._engines))
            raise NotFound("MODEL_NOT_FOUND", "no base {name!r} is served: there are {served}", name=base, served=served, field="base")
        return self._engines[base]

    async def _again(self, held: _Adapter, engine: Engine, files: verification.AdapterFiles) -> Model:
        hashes = (files.weights_sha256, files.config_sha256)
        if held.leaving or held.engine is not engine or (held.files.weights_sha256, held.files.config_sha256) != hashes:
            raise AlreadyExists(
                "ADAPTER_NAME_TAKEN",
                "{name} is another adapter, with weights {held}: unload it or take another name",
                name=held.name,
                held=held.files.weights_sha256,
            )
        if held.state is not State.VERIFIED:
            await self._prove(held)
        return _adapter_model(held)

    def _base_model(self, name: str) -> Model:
        base = self._engines[name].base
        return Model(name, name, base.uri, base.weights_sha256, base.context_tokens, base.load_time)

    def _alias_model(self, alias: str) -> Model:
        change = self._aliases[alias]
        engine = self._engines.get(change.target)
        adapter = self._adapters.get(change.target)
        if engine is None and adapter is not None:
            engine = adapter.engine
        # Nothing is known of a target that is not loaded.
        base, context = ("", 0) if engine is None else (engine.base.name, engine.base.context_tokens)
        return Model(alias, base, "", "", context, change.time, target=change.target)


def _adapter_model(adapter: _Adapter) -> Model:
    base = adapter.engine.base
    return Model(
        adapter.name,
        base.name,
        adapter.uri,
        adapter.files.weights_sha256,
        base.context_tokens,
        adapter.load_time,
        adapter.state,
        adapter.proof,
    )


def _rank(model: Model) -> int:
    return 2 if model.target else 0 if model.state is None else 1
