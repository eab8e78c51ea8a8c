"""Stage 2: a sealed index of the passages, named by the hash of passages, encoder and settings. Asks the retriever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import astuple

import grpc
from tunetrial.retriever.v1 import retriever_pb2

from flows.clients import Clients
from flows.errors import TrialError
from flows.prompting import passage_message
from flows.stages.prepare import Prepared
from flows.store import digest
from flows.trial import Trial

_BATCH = 200


def index_name(trial: Trial, prepared: Prepared) -> str:
    """Name of the index of these passages."""
    inputs = [trial.inputs["encoder"], [astuple(passage) for passage in prepared.passages]]
    return f"{trial.spec.name.lower().replace('.', '-')}-{digest(inputs)[:16]}"


async def ensure_index(trial: Trial, prepared: Prepared) -> str:
    """The name of the sealed index; made if it is not there. An ingest that was interrupted goes on: passages that are in are skipped."""
    name = index_name(trial, prepared)
    async with trial.services.use("retriever") as clients:
        if await _is_sealed(clients, name):
            return name
        settings = retriever_pb2.IndexSettings(encoder=trial.loaded.encoder)
        await clients.retriever.CreateIndex(retriever_pb2.CreateIndexRequest(name=name, settings=settings), timeout=300)
        trial.progress.stage("index", len(prepared.passages))
        response = await _ingest(trial, clients, name, prepared)
        if response.failures:
            reasons = "\n".join(f"  {failure.id}: {failure.message}" for failure in response.failures[:5])
            raise TrialError(f"the retriever refused {len(response.failures)} of {len(prepared.passages)} passages:\n{reasons}")
        await clients.retriever.SealIndex(retriever_pb2.SealIndexRequest(name=name), timeout=3600)
    trial.progress.finish("index", f"{len(prepared.passages)} passages")
    return name


async def _is_sealed(clients: Clients, name: str) -> bool:
    try:
        found = await clients.retriever.GetIndex(retriever_pb2.GetIndexRequest(name=name), timeout=60)
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.NOT_FOUND:
            return False
        raise
    return found.index.state == retriever_pb2.INDEX_STATE_SEALED


async def _ingest(trial: Trial, clients: Clients, name: str, prepared: Prepared) -> retriever_pb2.IngestPassagesResponse:
    while True:
        try:
            return await clients.retriever.IngestPassages(_batches(trial, name, prepared))
        except grpc.aio.AioRpcError as error:
            # The service lets no call last longer than it says; what is in stays in, so the next one gets further.
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            trial.progress.stage("index", len(prepared.passages))


async def _batches(trial: Trial, name: str, prepared: Prepared) -> AsyncIterator[retriever_pb2.IngestPassagesRequest]:
    for start in range(0, len(prepared.passages), _BATCH):
        batch = prepared.passages[start : start + _BATCH]
        yield retriever_pb2.IngestPassagesRequest(index=name, passages=map(passage_message, batch))
        trial.progress.advance("index", len(batch))
