"""Reads Qasper in its raw form (https://allenai.org/data/qasper): one JSON object, paper id -> title, abstract, full_text, qas.

Each annotator's answer is one reference, the most frequent first: extractive spans joined by ", ", the free-form answer, or "Yes" and
"No". When most annotators say that the paper holds no answer, the item is not answerable and its only reference is "unanswerable"; a
minority of such votes gives no reference. Evidence is text of the paper; entries that begin with "FLOAT SELECTED" point to tables and
figures and are no text evidence. The abstract is a section of its own; sections without a name have the heading "", "A ::: B" is "A > B".
The cluster is the paper.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from flows.data.fields import Row, as_row, distinct, identifier, name_of, objects, optional_text, require, text, texts
from flows.data.files import json_elements, read_text
from flows.data.headings import heading_path
from flows.data.source import BadRows, Collector, RowError, Source
from flows.records import Document, Evidence, Item, Section

UNANSWERABLE = "unanswerable"

_FLOAT = "FLOAT SELECTED"
_LEVEL = ":::"


def read_qasper(path: Path, *, bad_rows: BadRows = "error") -> Source:
    """All questions and papers of a Qasper file, plain or gzip. A row is a question. Raises DataError."""
    collector = Collector(path, bad_rows)
    file = str(path)
    whole = read_text(path)
    for element in json_elements(path, whole, collector):
        if element.key is None:
            raise collector.broken(
                file, element.line, "a list, expected one object with a member for each paper", "Is it another data set?"
            )
        questions: Sequence[object] = ()
        try:
            paper = as_row(element.value, "the value")
            questions = _questions(paper)
            document = _paper(element.key, paper)
        except RowError as error:
            with collector.row(file, element.line):
                raise RowError(f"paper {element.key!r}: {error}") from None
            continue
        collector.add_document(document)
        for question in questions:
            line = element.line + _lines_to(question, whole, element.start)
            with collector.row(file, line):
                row = as_row(question, f"a question of paper {element.key!r}")
                item, reason = _item(element.key, row)
                if item.references:
                    collector.add(item, file, line)
                else:
                    collector.skip(file, line, item.id, reason)
    return collector.source(stand_alone=False)


def _questions(paper: Row) -> Sequence[object]:
    questions = require(paper, "qas")
    if not isinstance(questions, list):
        raise RowError(f"'qas' is {name_of(questions)}, expected a list")
    return questions


def _lines_to(question: object, whole: str, start: int) -> int:
    """How many lines below its paper a question stands; 0 when it has no id to look for."""
    name = question.get("question_id") if isinstance(question, dict) else None
    at = whole.find(f'"{name}"', start) if isinstance(name, str) else -1
    return whole.count("\n", start, at) if at >= 0 else 0


def _paper(name: str, paper: Row) -> Document:
    title, abstract = optional_text(paper, "title"), optional_text(paper, "abstract")
    sections = [Section("Abstract", (abstract,))] if abstract else []
    for section in objects(paper, "full_text"):
        heading = heading_path(optional_text(section, "section_name").split(_LEVEL), title)
        sections.append(Section(heading, tuple(texts(section, "paragraphs"))))
    return Document(name, title, tuple(sections))


def _item(paper: str, row: Row) -> tuple[Item, str]:
    name = identifier(row, "question_id")
    answers = [as_row(require(answer, "answer"), "'answer'") for answer in objects(row, "answers")]
    unanswerable = sum(_unanswerable(answer) for answer in answers)
    answering = [answer for answer in answers if not _unanswerable(answer)]
    votes = Counter(reply for reply in map(_reply, answering) if reply[0])
    answerable = not (answers and unanswerable > len(answers) / 2)
    ranked = [reply for reply, _ in votes.most_common()] if answerable else [(UNANSWERABLE, UNANSWERABLE)]
    reason = "no annotator gave an answer" if answers else "no annotations (a test file without answers)"
    item = Item(
        id=name,
        question=text(row, "question"),
        references=distinct([reference for reference, _ in ranked]),
        cluster=paper,
        kind=ranked[0][1] if ranked else "",
        evidence=tuple(Evidence(paper, one) for one in _evidence(answering)) if answerable else (),
        answerable=answerable,
    )
    return item, reason


def _unanswerable(answer: Row) -> bool:
    value = require(answer, "unanswerable")
    if not isinstance(value, bool):
        raise RowError(f"'unanswerable' is {name_of(value)}, expected true or false")
    return value


def _reply(answer: Row) -> tuple[str, str]:
    """Reference and kind of one annotator's answer, in the order of Qasper's own evaluator; ("", "") when all its fields are empty."""
    spans = texts(answer, "extractive_spans")
    if spans:
        return ", ".join(spans), "extractive"
    if free := optional_text(answer, "free_form_answer"):
        return free, "free_form"
    yes = answer.get("yes_no")
    if yes is not None and not isinstance(yes, bool):
        raise RowError(f"'yes_no' is {name_of(yes)}, expected true, false or null")
    return ("", "") if yes is None else ("Yes" if yes else "No", "yesno")


def _evidence(answers: Sequence[Row]) -> tuple[str, ...]:
    return distinct([one for answer in answers for one in texts(answer, "evidence") if not one.startswith(_FLOAT)])
