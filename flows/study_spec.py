"""What a user writes to measure retrieval alone: the keys of a study. Knows no file, no data and no service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from flows.data_spec import ChunkSpec, DataSpec, Name, Part, RetrievalSpec, beside, is_folder, one_or_many

_Value = TypeVar("_Value")
_Many = Annotated[tuple[_Value, ...], BeforeValidator(one_or_many)]


class GridSpec(Part):
    """What a study of retrieval tries. A key left out stays as `retrieval` has it; without `mode` and `rerank`: lexical, dense, hybrid, and
    hybrid reranked."""

    mode: _Many[Literal["lexical", "dense", "hybrid"]] | None = Field(None, min_length=1, description="Modes.")
    k: _Many[Annotated[int, Field(ge=1, le=100)]] | None = Field(None, min_length=1, description="Numbers of passages shown.")
    chunk: _Many[ChunkSpec] | None = Field(None, min_length=1, description="Ways to cut documents.")
    encoder: _Many[str] | None = Field(None, min_length=1, description="Encoders.")
    rerank: _Many[bool] | None = Field(None, min_length=1, description="With and without reranking.")
    depths: _Many[Annotated[int, Field(ge=1, le=1000)]] = Field((1, 3, 5, 10), min_length=1, description="Ranks down to which is measured.")

    @model_validator(mode="after")
    def _different(self) -> GridSpec:
        for name in GridSpec.model_fields:
            values = getattr(self, name) or ()
            if any(value in values[:place] for place, value in enumerate(values)):
                raise ValueError(f"{name} names a value twice")
        return self


class StudySpec(Part):
    """A study of retrieval alone."""

    name: Name = Field(description="Name of the study.")
    data: DataSpec = Field(description="Questions with known passages or documents, and what to search.")
    retrieval: RetrievalSpec = Field(RetrievalSpec(), description="How passages are found, where the grid does not say otherwise.")
    grid: GridSpec = Field(GridSpec(), description="What is tried.")


@dataclass(frozen=True, slots=True)
class LoadedStudy:
    """A study of retrieval and the file that it came from; for a folder of data without a spec, a file in it that is not there."""

    spec: StudySpec
    path: Path

    def resolve(self, path: Path) -> Path:
        """A path of the spec, taken relative to the spec's folder."""
        return beside(self.path, path)

    def encoder(self, name: str) -> str:
        """An encoder of the spec: an absolute folder, a hub name, or "" for the one that ships."""
        return str(self.resolve(Path(name))) if is_folder(name) else name
