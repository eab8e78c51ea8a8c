"""What a running generator serves, and its aliases. Knows no stage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tunetrial.generator.v1 import generator_pb2

from flows.clients import Clients
from flows.connections import running_services

_KINDS = {
    generator_pb2.MODEL_KIND_BASE: "base",
    generator_pb2.MODEL_KIND_ADAPTER: "adapter",
    generator_pb2.MODEL_KIND_ALIAS: "alias",
}


async def models(home: Path) -> list[dict[str, Any]]:
    """Bases, adapters and aliases; UserError when no services run."""
    async with _generator(home) as clients:
        return [_row(model) async for model in all_models(clients)]


async def all_models(clients: Clients) -> AsyncIterator[generator_pb2.Model]:
    """Every model that the generator lists."""
    token = ""
    while True:
        page = await clients.generator.ListModels(generator_pb2.ListModelsRequest(page_token=token), timeout=60)
        for model in page.models:
            yield model
        token = page.next_page_token
        if not token:
            return


async def set_alias(home: Path, alias: str, target: str) -> dict[str, Any]:
    """The alias, pointing at `target` now, and what it pointed at before."""
    async with _generator(home) as clients:
        done = await clients.generator.SetAlias(generator_pb2.SetAliasRequest(alias=alias, target=target), timeout=60)
    return _changed(alias, done.history)


async def roll_back(home: Path, alias: str) -> dict[str, Any]:
    """The alias, pointing at what it stood for before its last change."""
    async with _generator(home) as clients:
        done = await clients.generator.RollbackAlias(generator_pb2.RollbackAliasRequest(alias=alias), timeout=60)
    return _changed(alias, done.history)


def _changed(alias: str, history: Any) -> dict[str, Any]:
    changes = [{"target": change.target, "time": change.time.ToJsonString()} for change in history]
    return {"alias": alias, "target": changes[0]["target"], "history": changes}


def _row(model: generator_pb2.Model) -> dict[str, Any]:
    state = generator_pb2.AdapterState.Name(model.state).removeprefix("ADAPTER_STATE_").lower() if model.HasField("state") else ""
    return {
        "name": model.name,
        "kind": _KINDS[model.kind],
        "base": model.base,
        "engine": model.engine,
        "target": model.target,
        "state": state,
        "why": model.rejection.message,
        "weights_sha256": model.weights_sha256,
        "uri": model.uri,
    }


@asynccontextmanager
async def _generator(home: Path) -> AsyncIterator[Clients]:
    async with running_services(home) as services, services.use("generator") as clients:
        yield clients
