"""From the spec's `retrieval.chunk` to passages: by which tokens they are cut, and with which text they are searched. Knows no stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from flows.data.chunk import Chunking, Piece, pieces
from flows.data.encoder import EncoderTokens
from flows.data.tokens import TokenSpans, by_words
from flows.data_spec import ChunkSpec
from flows.errors import UserError
from flows.records import Document, Passage


def token_spans(spec: ChunkSpec, encoder: EncoderTokens | None) -> TokenSpans:
    """What counts tokens. `encoder` must be given where the spec counts by it."""
    if spec.count == "words":
        return by_words
    if encoder is None:
        raise UserError("retrieval.chunk.count: tokens of the encoder cannot be counted here. Set it to words")
    return encoder.token_spans


def cut_documents(documents: Iterable[Document], spec: ChunkSpec, encoder: EncoderTokens | None) -> Iterator[Piece]:
    """The documents as passages, each with its place in its document."""
    chunking = Chunking(spec.unit, spec.max_tokens, spec.overlap, spec.sentences, spec.sentences_apart)
    return pieces(documents, chunking, token_spans(spec, encoder))


def searched(passages: Sequence[Passage], spec: ChunkSpec) -> Sequence[Passage]:
    """The passages with the text by which they are searched; what is shown, cited and compared with evidence stays verbatim."""
    return [_under_headings(passage) for passage in passages] if spec.heading else passages


def cut_by_encoder(passages: Sequence[Passage], spec: ChunkSpec, encoder: EncoderTokens | None) -> int | None:
    """Passages of which the encoder sees the beginning only; None where this was not counted."""
    if spec.count == "words" or encoder is None:
        return None
    if encoder.max_tokens is not None and spec.max_tokens <= encoder.max_tokens and spec.unit != "document" and not spec.heading:
        return 0  # as they were cut
    return encoder.cut(passage.text for passage in searched(passages, spec))


def _under_headings(passage: Passage) -> Passage:
    # BEIR's texts open with their title.
    title = "" if passage.text.startswith(passage.title) else passage.title
    return replace(passage, text="\n".join(line for line in (title, passage.heading, passage.text) if line))
