"""Settings that contradict each other or are out of range, and what follows from others."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.retriever.settings import Settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rerank_window": 100, "max_rerank_queue": 99}, "max_rerank_queue must be at least rerank_window"),
        ({"rerank_window": 1001}, "rerank_window"),
        ({"rerank_batch": 0}, "rerank_batch"),
        ({"embedding_cache_mb": -1}, "embedding_cache_mb"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, int], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Settings(**settings)  # type: ignore[arg-type]


def test_vectors_are_kept_beside_the_indexes_unless_told_otherwise() -> None:
    assert Settings(data_dir=Path("/data/retriever")).embeddings == Path("/data/embeddings")
    assert Settings(embedding_cache=Path("/fast/vectors")).embeddings == Path("/fast/vectors")
