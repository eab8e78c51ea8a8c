"""Starts the retriever: settings from TUNETRIAL_*, indexes in Elasticsearch or on disk, encoders in this process."""

from __future__ import annotations

import asyncio
import sys
from functools import partial

from pydantic import ValidationError
from tunetrial.retriever.v1 import retriever_pb2_grpc

from services.common import telemetry
from services.common.errors import TunetrialError
from services.common.server import Service, serve
from services.retriever.elastic_client import ElasticConnection
from services.retriever.elastic_documents import Layout
from services.retriever.elastic_index import ElasticIndexes
from services.retriever.elastic_settings import ElasticsearchSettings
from services.retriever.embedding_cache import CachedEncoders, EmbeddingCache
from services.retriever.encoder import SentenceEncoders
from services.retriever.lance_index import LanceIndexes
from services.retriever.reranker import SentenceReranker
from services.retriever.retriever import Retriever
from services.retriever.servicer import RetrieverServicer
from services.retriever.settings import Settings


def elastic_indexes(settings: ElasticsearchSettings) -> ElasticIndexes:
    """Indexes in the cluster that the settings name. Raises OSError or ValueError for files that cannot be read or used."""
    layout = Layout(settings.shards, settings.replicas, settings.analyzer, settings.vector_index, settings.candidates)
    return ElasticIndexes(
        ElasticConnection(settings.client_options(), settings.fingerprint),
        prefix=settings.prefix,
        layout=layout,
        merge_segments=settings.merge_segments,
        server_fusion=settings.server_fusion,
        search_requests=settings.search_requests,
    )


async def run(settings: Settings, elastic: ElasticsearchSettings) -> None:
    """Serves until told to stop."""
    telemetry.set_up("retriever", settings)
    indexes = elastic_indexes(elastic) if elastic.wanted else LanceIndexes(settings.data_dir, settings.max_passages)
    encoders = SentenceEncoders(
        default=settings.encoder,
        device=settings.device,
        threads=settings.threads,
        batch_size=settings.encode_batch,
        max_loaded=settings.max_encoders,
        max_queue=settings.max_encoder_queue,
        uri_roots=settings.uri_roots,
    )
    reranker = None
    if settings.reranker:
        reranker = SentenceReranker(
            settings.reranker,
            device=settings.device,
            threads=settings.threads,
            batch_size=settings.rerank_batch,
            max_queue=settings.max_rerank_queue,
            executor=encoders.executor,
        )
    cache = EmbeddingCache(settings.embeddings, settings.embedding_cache_mb * 2**20) if settings.embedding_cache_mb else None

    async def prepare() -> None:
        await encoders.prepare()
        if reranker is not None:
            await reranker.prepare()

    async def close() -> None:
        await indexes.close()
        if cache is not None:
            await cache.close()

    retriever = Retriever(
        indexes,
        CachedEncoders(encoders, cache) if cache is not None else encoders,
        settings.encoder,
        settings.ingest_batch,
        reranker,
        settings.rerank_window,
    )
    servicer = RetrieverServicer(retriever, settings.batch_search_concurrency)
    add = partial(retriever_pb2_grpc.add_RetrieverServiceServicer_to_server, servicer)
    service = Service("tunetrial.retriever.v1.RetrieverService", add, admin_rpcs=("DeleteIndex",), close=close, ready=indexes.ready)
    await serve(service, settings, prepare=prepare)


if __name__ == "__main__":
    try:
        asyncio.run(run(Settings(), ElasticsearchSettings()))
    except (ValidationError, TunetrialError, OSError, ValueError) as error:
        sys.exit(f"retriever: {error}")
