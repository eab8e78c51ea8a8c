"""The text of a document as one, and where its sections and paragraphs are in it. Knows no passage."""

from __future__ import annotations

from dataclasses import dataclass

from flows.data.tokens import Span
from flows.records import Document

_BLANK_LINE = "\n\n"


@dataclass(frozen=True, slots=True)
class Stretch:
    """A section with text. `number` counts the document's sections from 1; spans are of the document's text."""

    number: int
    heading: str
    span: Span
    paragraphs: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """All paragraphs of a document, verbatim and apart by blank lines."""

    text: str
    sections: tuple[Stretch, ...]


def lay_out(document: Document) -> Layout:
    """The document's text with its sections; those without paragraphs are left out."""
    sections: list[Stretch] = []
    paragraphs: list[str] = []
    at = 0
    for number, section in enumerate(document.sections, 1):
        spans: list[Span] = []
        for paragraph in section.paragraphs:
            spans.append((at, at + len(paragraph)))
            at += len(paragraph) + len(_BLANK_LINE)
        if spans:
            sections.append(Stretch(number, section.heading, (spans[0][0], spans[-1][1]), tuple(spans)))
        paragraphs += section.paragraphs
    return Layout(_BLANK_LINE.join(paragraphs), tuple(sections))
