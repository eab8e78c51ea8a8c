"""What trials and retrieval studies are told alike: questions, documents, passages, search. Knows no file, no data and no service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class Part(BaseModel):
    """A part of a spec: keys that it does not know are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSpec(Part):
    """A file of questions."""

    reader: Literal["beir", "bioasq", "nq", "nq_open", "qasper", "table"] = Field(description="Format of the file.")
    path: Path = Field(description="The file; may end in .gz. For beir the folder.")
    answers: Literal["exact", "ideal", "both"] | None = Field(None, description="BioASQ only: which answers are references.")
    long_answers: bool | None = Field(None, description="nq only: take the long answer where there is no short one.")
    limit: int | None = Field(None, ge=1, description="nq and nq_open only: read so many rows at most.")
    split: Name | None = Field(None, description="beir only: whose judgements count, qrels/<split>.tsv; default test.")
    columns: dict[str, str] | None = Field(None, description="table only: names of columns in the file, by the names that are expected.")


def one_or_many(value: Any) -> Any:
    """A value alone as a list of one."""
    return value if isinstance(value, list) else [value]


class DataSpec(Part):
    """Questions and the documents that may answer them."""

    sources: tuple[SourceSpec, ...] = Field(min_length=1, description="Files of questions; `reader` and `path` alone stand for one.")
    corpus: Annotated[tuple[Path, ...], BeforeValidator(one_or_many)] = Field(
        (), description="Folders of .txt, .md, .html and .pdf files to retrieve from, beside the documents that sources bring."
    )
    test_items: int = Field(200, ge=2, description="Questions to test on; drawn by whole clusters.")
    seed: int = Field(0, description="Seed of the split.")
    on_leak: Literal["stop", "drop"] = Field("stop", description="What to do with training questions that are also test questions.")
    near_duplicate: float = Field(
        0.8, gt=0, le=1, description="Jaccard similarity of content words from which questions are near duplicates."
    )
    bad_rows: Literal["error", "skip"] = Field("error", description="What to do with broken rows.")

    @model_validator(mode="before")
    @classmethod
    def _single_source(cls, value: Any) -> Any:
        if isinstance(value, dict) and "sources" not in value:
            own = {key: value[key] for key in SourceSpec.model_fields if key in value}
            rest = {key: value[key] for key in value if key not in own}
            return rest | {"sources": [own]} if own else value
        return value


class ChunkSpec(Part):
    """How documents become passages, and what of them a prompt shows."""

    unit: Literal["document", "section", "paragraph", "sentences", "tokens"] = Field(
        "paragraph", description="A passage is a whole document, a section, a paragraph, a few sentences, or a window of tokens."
    )
    max_tokens: int = Field(
        200, ge=8, le=4096, description="Longest passage in tokens as `count` counts them; longer ones are cut, but not whole documents."
    )
    count: Literal["words", "encoder"] = Field(
        "words", description="What a token is: a word or mark (a model has about 1.2 to one), or a token of the retrieval encoder."
    )
    overlap: int = Field(0, ge=0, description="Tokens shared by neighbouring windows; unit tokens only.")
    window: int | None = Field(None, ge=1, le=100, description="Sentences of a passage; unit sentences only; default 3.")
    stride: int | None = Field(
        None, ge=1, le=100, description="Sentences from one passage to the next; unit sentences only; default window, without overlap."
    )
    heading: bool = Field(False, description="Title and path of headings are searched with the text; shown is the text alone.")
    parent: Literal["none", "section", "document"] = Field(
        "none", description="Passages are searched, but prompts show the section or document around them, each once."
    )
    parent_max_tokens: int | None = Field(
        None, ge=8, le=100_000, description="Longest parent shown; of a longer one what is around the hit; default 500, or max_tokens."
    )

    @model_validator(mode="after")
    def _sensible(self) -> ChunkSpec:
        problems = list(self._problems())
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> Iterator[str]:
        if self.overlap >= self.max_tokens:
            yield f"overlap ({self.overlap}) must be smaller than max_tokens ({self.max_tokens})"
        if self.overlap and self.unit != "tokens":
            yield f"overlap goes with unit: tokens; unit: {self.unit} does not overlap, so leave it out"
        for name, given in (("window", self.window), ("stride", self.stride)):
            if given is not None and self.unit != "sentences":
                yield f"{name} goes with unit: sentences; with unit: {self.unit} leave it out"
        if self.sentences_apart > self.sentences:
            yield f"stride ({self.stride}) must be at most window ({self.sentences}), or sentences would be lost"
        if self.parent != "none" and self.unit == "document":
            yield f"parent: {self.parent} needs passages that are smaller; with unit: document leave it out"
        if self.parent_max_tokens is not None:
            if self.parent == "none":
                yield "parent_max_tokens goes with parent: section or document; leave it out, or set parent"
            elif self.parent_max_tokens < self.max_tokens:
                yield f"parent_max_tokens ({self.parent_max_tokens}) must be at least max_tokens ({self.max_tokens})"

    @property
    def sentences(self) -> int:
        """Sentences of a passage, for the unit sentences."""
        return self.window or 3

    @property
    def sentences_apart(self) -> int:
        """Sentences from one passage to the next."""
        return self.stride or self.sentences

    @property
    def shown_tokens(self) -> int:
        """Longest parent that a prompt shows."""
        return self.parent_max_tokens or max(500, self.max_tokens)


class RetrievalSpec(Part):
    """How passages are found. One snapshot of the results serves all arms."""

    encoder: str = Field("", description="Name or path of a sentence-transformers model; empty for the one that ships, all-MiniLM-L6-v2.")
    mode: Literal["lexical", "dense", "hybrid"] = Field("hybrid", description="By words, by meaning, or both fused by rank.")
    k: int = Field(5, ge=1, le=100, description="Passages found for a question and shown; with chunk.parent their parents, each once.")
    window: int | None = Field(None, ge=1, description="Passages taken from each leg before fusion; default max(50, 5 k).")
    fusion_k: int = Field(60, ge=1, description="Constant of reciprocal rank fusion.")
    lexical_weight: float = Field(1.0, ge=0, description="Weight of the lexical leg.")
    dense_weight: float = Field(1.0, ge=0, description="Weight of the dense leg.")
    rerank: bool = Field(False, description="Reorder what was found by the retriever's cross-encoder (its setting TUNETRIAL_RERANKER).")
    chunk: ChunkSpec = Field(ChunkSpec(), description="How documents become passages.")

    @model_validator(mode="after")
    def _window(self) -> RetrievalSpec:
        if self.window is not None and self.window < self.k:
            raise ValueError(f"window ({self.window}) must be at least k ({self.k})")
        return self


def beside(file: Path, path: Path) -> Path:
    """A path in a spec, taken relative to the folder of the spec's file."""
    return (file.parent / path.expanduser()).resolve()


def is_folder(base: str) -> bool:
    """Whether a base or an encoder names a folder; otherwise it is a hub name."""
    return base.startswith((".", "/", "~"))
