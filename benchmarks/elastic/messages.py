"""The corpus as our service takes it."""

from __future__ import annotations

from collections.abc import Iterator

from tunetrial.common.v1 import common_pb2
from tunetrial.retriever.v1 import retriever_pb2

from benchmarks.elastic.corpus import Corpus

_MESSAGE = 500  # passages


def messages(corpus: Corpus, index: str, batches: range) -> Iterator[retriever_pb2.IngestPassagesRequest]:
    """An ingest of these batches of the corpus, made as it is sent."""
    for batch in batches:
        texts = corpus.passages(batch)
        made = [common_pb2.Passage(id=id_, text=text, document=id_[:-1]) for id_, text in zip(texts.ids, texts.texts, strict=True)]
        for start in range(0, len(made), _MESSAGE):
            yield retriever_pb2.IngestPassagesRequest(index=index, passages=made[start : start + _MESSAGE])
