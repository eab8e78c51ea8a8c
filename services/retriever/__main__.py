"""Starts the retriever: settings from TUNETRIAL_*, indexes on disk, encoders in this process."""

from __future__ import annotations

import asyncio
import sys
from functools import partial

from pydantic import ValidationError
from tunetrial.retriever.v1 import retriever_pb2_grpc

from services.common import telemetry
from services.common.errors import TunetrialError
from services.common.server import Service, serve
from services.retriever.encoder import SentenceEncoders
from services.retriever.lance_index import LanceIndexes
from services.retriever.retriever import Retriever
from services.retriever.servicer import RetrieverServicer
from services.retriever.settings import Settings


async def run(settings: Settings) -> None:
    """Serves until told to stop."""
    telemetry.set_up("retriever", settings)
    indexes = LanceIndexes(settings.data_dir, settings.max_passages)
    encoders = SentenceEncoders(
        default=settings.encoder,
        device=settings.device,
        threads=settings.threads,
        batch_size=settings.encode_batch,
        max_loaded=settings.max_encoders,
        max_queue=settings.max_encoder_queue,
        uri_roots=settings.uri_roots,
    )
    servicer = RetrieverServicer(Retriever(indexes, encoders, settings.encoder, settings.ingest_batch), settings.batch_search_concurrency)
    add = partial(retriever_pb2_grpc.add_RetrieverServiceServicer_to_server, servicer)
    service = Service("tunetrial.retriever.v1.RetrieverService", add, admin_rpcs=("DeleteIndex",), close=indexes.close)
    await serve(service, settings, prepare=encoders.prepare)


if __name__ == "__main__":
    try:
        asyncio.run(run(Settings()))
    except (ValidationError, TunetrialError) as error:
        sys.exit(f"retriever: {error}")
