"""The retriever service with vectors from a table instead of a model: all of it is real but the encoder.

    TUNETRIAL_ELASTICSEARCH_URLS=http://localhost:9200 TUNETRIAL_PORT=0 python -m benchmarks.elastic.table_service 7 1000

Arguments are the seed of the corpus and the number of its questions. A passage's first word says which it is; its vector is made when it
is asked for, so that the memory of an ingest is the service's own.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np
from tunetrial.retriever.v1 import retriever_pb2_grpc

from benchmarks.elastic.corpus import BATCH, DIMENSIONS, Corpus
from services.common import telemetry
from services.common.server import Service, serve
from services.retriever.__main__ import elastic_indexes
from services.retriever.domain import Encoder, Vectors
from services.retriever.elastic_settings import ElasticsearchSettings
from services.retriever.retriever import Retriever
from services.retriever.servicer import RetrieverServicer
from services.retriever.settings import Settings


class Table:
    """Encoders and encoder in one."""

    def __init__(self, corpus: Corpus, questions: int) -> None:
        made = zip(corpus.questions(questions).texts, corpus.question_vectors(questions), strict=True)
        self._questions = {text: vector.tobytes() for text, vector in made}
        self._batch = lru_cache(4)(corpus.passage_vectors)

    fingerprint = "table"
    max_tokens = 0

    async def get(self, name: str) -> Encoder:
        """This table, whatever the name."""
        return self

    async def queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of questions of the corpus."""
        return Vectors(DIMENSIONS, b"".join(self._questions[text] for text in texts))

    async def passages(self, texts: Sequence[str]) -> Vectors:
        """Vectors of passages of the corpus."""
        places = [divmod(int(text[1:8]), BATCH) for text in texts]
        return Vectors(DIMENSIONS, np.stack([self._batch(batch)[row] for batch, row in places]).tobytes())


async def run(seed: int, questions: int) -> None:
    """Serves until told to stop."""
    settings = Settings()
    telemetry.set_up("retriever", settings)
    indexes = elastic_indexes(ElasticsearchSettings())
    retriever = Retriever(indexes, Table(Corpus(seed), questions), settings.encoder, settings.ingest_batch)
    servicer = RetrieverServicer(retriever, settings.batch_search_concurrency)
    add = partial(retriever_pb2_grpc.add_RetrieverServiceServicer_to_server, servicer)
    await serve(Service("tunetrial.retriever.v1.RetrieverService", add, close=indexes.close), settings)


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1]), int(sys.argv[2])))
