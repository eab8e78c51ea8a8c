"""Stage 2: a sealed index of the passages, named by the hash of passages, encoder and settings. Asks the retriever."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import astuple, dataclass

import grpc
from tunetrial.retriever.v1 import retriever_pb2

from flows.chunking import searched
from flows.clients import Clients
from flows.connections import Services
from flows.errors import TrialError
from flows.progress import Progress
from flows.prompting import passage_message
from flows.records import Passage
from flows.stages.prepare import Prepared
from flows.store import canonical
from flows.trial import Trial

_BATCH = 200
# Bytes of text in a message; the channel takes 16 MiB.
_BATCH_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """An index that is wanted: its name, its encoder as the retriever takes it ("" for the one that ships), and what is in it."""

    name: str
    encoder: str
    passages: Sequence[Passage]


def plan_index(prefix: str, encoder: str, identity: object, passages: Sequence[Passage]) -> IndexPlan:
    """The index of these passages. `identity` stands for the encoder in the name: the hash of its files, or its name."""
    # The digest of `[identity, passages]`, passage by passage: the JSON of a large corpus would be the corpus once more in memory.
    content = hashlib.sha256(f"[{canonical(identity)},[".encode())
    for number, passage in enumerate(passages):
        content.update(("," if number else "").encode() + canonical(astuple(passage)).encode())
    content.update(b"]]")
    return IndexPlan(f"{prefix.lower().replace('.', '-')}-{content.hexdigest()[:16]}", encoder, passages)


def trial_index(trial: Trial, prepared: Prepared) -> IndexPlan:
    """The index that all arms of a trial search."""
    passages = searched(prepared.passages, trial.spec.retrieval.chunk)
    return plan_index(trial.spec.name, trial.loaded.encoder, trial.inputs["encoder"], passages)


async def ensure_index(services: Services, progress: Progress, plan: IndexPlan) -> None:
    """The index is there and sealed; made if it is not. An ingest that was interrupted goes on: passages that are in are skipped."""
    async with services.use("retriever") as clients:
        if await _is_sealed(clients, plan.name):
            return
        settings = retriever_pb2.IndexSettings(encoder=plan.encoder)
        await clients.retriever.CreateIndex(retriever_pb2.CreateIndexRequest(name=plan.name, settings=settings), timeout=300)
        progress.stage("index", len(plan.passages))
        response = await _ingest(clients, progress, plan)
        if response.failures:
            reasons = "\n".join(f"  {failure.id}: {failure.message}" for failure in response.failures[:5])
            raise TrialError(f"the retriever refused {len(response.failures)} of {len(plan.passages)} passages:\n{reasons}")
        await clients.retriever.SealIndex(retriever_pb2.SealIndexRequest(name=plan.name), timeout=3600)
    progress.finish("index", f"{len(plan.passages)} passages")


async def _is_sealed(clients: Clients, name: str) -> bool:
    try:
        found = await clients.retriever.GetIndex(retriever_pb2.GetIndexRequest(name=name), timeout=60)
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.NOT_FOUND:
            return False
        raise
    return found.index.state == retriever_pb2.INDEX_STATE_SEALED


async def _ingest(clients: Clients, progress: Progress, plan: IndexPlan) -> retriever_pb2.IngestPassagesResponse:
    while True:
        try:
            return await clients.retriever.IngestPassages(_requests(progress, plan))
        except grpc.aio.AioRpcError as error:
            # The service lets no call last longer than it says; what is in stays in, so the next one gets further.
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            progress.stage("index", len(plan.passages))


async def _requests(progress: Progress, plan: IndexPlan) -> AsyncIterator[retriever_pb2.IngestPassagesRequest]:
    for batch in _batches(plan.passages):
        yield retriever_pb2.IngestPassagesRequest(index=plan.name, passages=map(passage_message, batch))
        progress.advance("index", len(batch))


def _batches(passages: Sequence[Passage]) -> Iterator[list[Passage]]:
    batch: list[Passage] = []
    size = 0
    for passage in passages:
        length = len(passage.text.encode())
        if batch and (len(batch) == _BATCH or size + length > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(passage)
        size += length
    if batch:
        yield batch
