"""Passages as Elasticsearch documents, and searches as its requests. Knows no connection.

What the server looks at are the fields `text` (BM25), `vector` (nearest neighbours), `facets` (filters) and `id` (what a leg returns, from
doc values, so that no stored field is read for passages that fusion drops). The passage itself is the `_source`: vector and facets are left
out of it, so that it comes back as it went in without being filtered.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from services.retriever.domain import Index, IndexSettings, Mode, Passage, Query, SearchSettings, Vectors
from services.retriever.fusion import Scored

VectorIndex = Literal["hnsw", "int8_hnsw", "int4_hnsw", "bbq_hnsw", "flat", "int8_flat", "int4_flat", "bbq_flat"]

MOST_HITS = 10_000
"""The server's limits: max_result_window, and num_candidates of a vector search."""

LANGUAGES = (
    "arabic, armenian, basque, bengali, brazilian, bulgarian, catalan, cjk, czech, danish, dutch, english, estonian, finnish, french,"
    " galician, german, greek, hindi, hungarian, indonesian, irish, italian, latvian, lithuanian,"
    " norwegian, persian, portuguese, romanian, russian, serbian, sorani, spanish, swedish, thai, turkish"
)
"""Analyzers that the server has for languages."""

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """How indexes are made; what is there already keeps what it was made with."""

    shards: int
    replicas: int
    analyzer: str
    vector_index: VectorIndex
    candidates: int
    """Vectors that each shard compares for a query, at least (`num_candidates`)."""


def create_body(settings: IndexSettings, layout: Layout, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Mapping and settings of a new index: nothing may come in that is not named here."""
    return {
        "settings": {
            "number_of_shards": layout.shards,
            "number_of_replicas": layout.replicas,
            "refresh_interval": "-1",  # nobody searches before the seal
            "similarity": {"passages": {"type": "BM25", "k1": settings.bm25_k1, "b": settings.bm25_b}},
        },
        "mappings": {
            "dynamic": "strict",
            "_meta": manifest,
            "_source": {"excludes": ["vector", "facets"]},
            "properties": {
                "id": {"type": "keyword"},
                "text": {"type": "text", "analyzer": settings.language.lower() or layout.analyzer, "similarity": "passages"},
                "facets": {"type": "keyword", "doc_values": False},
                "vector": {"type": "dense_vector", "similarity": "cosine", "index_options": {"type": layout.vector_index}},
                **{name: {"type": "keyword", "index": False, "doc_values": False} for name in ("document", "title", "heading", "metadata")},
            },
        },
    }


def to_manifest(index: Index) -> dict[str, Any]:
    """What an index is, as kept in its mapping's `_meta`."""
    seal_time = index.seal_time.isoformat() if index.seal_time else None
    return {"tunetrial": asdict(index) | {"format": _FORMAT, "create_time": index.create_time.isoformat(), "seal_time": seal_time}}


def from_manifest(meta: Mapping[str, Any]) -> Index:
    """The index. Raises ValueError, KeyError or TypeError for an index of somebody else."""
    values = dict(meta["tunetrial"])
    if values.pop("format") != _FORMAT:
        raise ValueError("it was written in another format")
    values["settings"] = IndexSettings(**values["settings"])
    values["create_time"] = datetime.fromisoformat(values["create_time"])
    values["seal_time"] = datetime.fromisoformat(values["seal_time"]) if values["seal_time"] else None
    return Index(**values)


def _facet(key: str, value: str) -> str:
    # A term of the server has at most 32,766 bytes and a value may have more; for equality a hash is as good.
    return hashlib.blake2b(json.dumps([key, value]).encode(), digest_size=16).hexdigest()


def to_document(passage: Passage, vector: NDArray[np.float32]) -> dict[str, Any]:
    """A passage and its vector."""
    return {
        **asdict(passage),
        "facets": [_facet("document", passage.document), *(_facet(key, value) for key, value in passage.metadata)],
        "vector": vector,
    }


def to_passage(source: Mapping[str, Any]) -> Passage:
    """The passage of a `_source`."""
    return Passage(**{**source, "metadata": tuple((key, value) for key, value in source["metadata"])})


def rows(vectors: Vectors) -> NDArray[np.float32]:
    """Vectors as an array of (count, dimensions), without a copy."""
    return np.frombuffer(vectors.data, dtype=np.float32).reshape(len(vectors), vectors.dimensions)


def legs(query: Query, limit: int, layout: Layout) -> list[dict[str, Any]]:
    """Bodies of the legs that the mode asks for, lexical first, each for its best `limit` passages."""
    settings = query.settings
    wanted = {"size": limit, "track_total_hits": False, "_source": False, "stored_fields": "_none_", "docvalue_fields": ["id"]}
    found = []
    if settings.mode is not Mode.DENSE:
        found.append({"query": _words(query.text, settings.filters), **wanted})
    if settings.mode is not Mode.LEXICAL:
        found.append({"query": {"knn": _neighbours(query, limit, layout)}, **wanted})
    return found


def to_leg(response: Mapping[str, Any], mode: Mode) -> list[Scored[str]]:
    """Ids and scores of a leg; the server gives a cosine as (1 + cosine) / 2."""
    hits = response["hits"]["hits"]
    if mode is Mode.LEXICAL:
        return [Scored(hit["fields"]["id"][0], hit["_score"]) for hit in hits]
    return [Scored(hit["fields"]["id"][0], min(1.0, max(-1.0, 2 * hit["_score"] - 1))) for hit in hits]


def server_fusion(query: Query, layout: Layout) -> dict[str, Any]:
    """One search in which the server fuses both legs (its `rrf` retriever)."""
    settings = query.settings
    return {
        "retriever": {
            "rrf": {
                "retrievers": [
                    {"standard": {"query": _words(query.text, settings.filters)}},
                    {"knn": _neighbours(query, settings.depth, layout)},
                ],
                "rank_window_size": settings.depth,
                "rank_constant": settings.fusion_k,
            }
        },
        "size": settings.k,
        "track_total_hits": False,
    }


def _words(text: str, filters: Sequence[tuple[str, str]]) -> dict[str, Any]:
    # A match query is words only: no character of it is an operator.
    match = {"match": {"text": {"query": text}}}
    return {"bool": {"must": match, "filter": _terms(filters)}} if filters else match


def _neighbours(query: Query, limit: int, layout: Layout) -> dict[str, Any]:
    assert query.vector is not None  # noqa: S101  the dense leg is asked with a vector only
    found: dict[str, Any] = {
        "field": "vector",
        "query_vector": rows(query.vector)[0],
        "k": limit,
        "num_candidates": min(MOST_HITS, max(layout.candidates, limit)),
    }
    if query.settings.filters:
        found["filter"] = _terms(query.settings.filters)
    return found


def _terms(filters: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"term": {"facets": _facet(key, value)}} for key, value in filters]


def first_limit(settings: SearchSettings) -> int:
    """One more than a leg's depth, which shows whether the last passage ties with those left out."""
    return min(MOST_HITS, settings.depth + 1)
