"""What a study tries, from its grid: every condition with its full settings and a name. Knows no data and no service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from flows.data_spec import ChunkSpec, RetrievalSpec
from flows.study_spec import StudySpec

_USUAL = (("lexical", False), ("dense", False), ("hybrid", False), ("hybrid", True))
"""Mode and rerank where the grid names neither."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One way to search. `optional`: left out where the retriever has no reranker, which the spec did not ask for by name."""

    name: str
    retrieval: RetrievalSpec
    optional: bool = False


def conditions(spec: StudySpec) -> tuple[Condition, ...]:
    """All conditions of the grid, in the order of chunking, encoder, k, mode and rerank."""
    grid, base = spec.grid, spec.retrieval
    usual = grid.mode is None and grid.rerank is None
    ways = _USUAL if usual else tuple(product(grid.mode or (base.mode,), grid.rerank or (base.rerank,)))
    chunks, encoders, ks = grid.chunk or (base.chunk,), grid.encoder or (base.encoder,), grid.k or (base.k,)
    found = []
    for chunk, encoder, k, (mode, rerank) in product(chunks, encoders, ks, ways):
        if mode == "lexical" and encoder != encoders[0] and chunk.count == "words":
            continue  # it knows no encoder, neither for searching nor for cutting: it would be the same search again
        settings = base.model_copy(update={"chunk": chunk, "encoder": encoder, "k": k, "mode": mode, "rerank": rerank})
        parts = [f"{mode} + rerank" if rerank else mode]
        parts += [chunk_name(chunk, chunks)] if len(chunks) > 1 else []
        parts += [encoder_name(encoder, encoders)] if len(encoders) > 1 and (mode != "lexical" or chunk.count == "encoder") else []
        parts += [f"k {k}"] if len(ks) > 1 else []
        found.append(Condition(" · ".join(parts), settings, rerank and usual and not base.rerank))
    return tuple(found)


def chunk_name(chunk: ChunkSpec, chunks: Sequence[ChunkSpec]) -> str:
    """Its unit, and the settings in which the chunkings of the grid differ: `tokens, max tokens 120`."""
    given = [one.model_dump() for one in chunks]
    own = chunk.model_dump()
    alike = [one for one in given if one["unit"] == own["unit"]]
    differing = [name for name in own if name != "unit" and any(one[name] != own[name] for one in alike)]
    return ", ".join([str(own["unit"]), *(f"{name.replace('_', ' ')} {own[name]}" for name in differing)])


def encoder_name(encoder: str, encoders: Sequence[str]) -> str:
    """The last part of its name where that tells it from the others."""
    short = [Path(name).name for name in encoders]
    if not encoder:
        return "default encoder"
    return Path(encoder).name if short.count(Path(encoder).name) == 1 else encoder
