"""The quickstart's files: made by their script, true to their documents, and new to the base model."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from examples.quickstart import make_data
from examples.quickstart.make_base import names
from examples.quickstart.make_base.contexts import exercise
from examples.quickstart.make_base.train import CURRICULUM
from examples.quickstart.world import Document
from flows.data.bioasq import read_bioasq
from flows.data.natural_questions import read_nq
from flows.data.qasper import read_qasper
from flows.data.source import Source


@pytest.fixture(scope="module")
def corpus() -> make_data.Corpus:
    return make_data.invent()


def every_document(corpus: make_data.Corpus) -> tuple[Document, ...]:
    return corpus.abstracts + corpus.pages + corpus.papers


def every_name(corpus: make_data.Corpus) -> Counter[str]:
    """Names of entities and of values, with how often they were given."""
    given: Counter[str] = Counter()
    for document in every_document(corpus):
        given.update(document.entities)
        stated = {sentence.fact for paragraph in document.paragraphs for sentence in paragraph.sentences if sentence.fact}
        given.update(fact.value for fact in stated if fact.kind == "name")
    return given


def stated_answers(documents: tuple[Document, ...]) -> dict[str, str | None]:
    return {
        question.text: None if question.fact is None else question.fact.value for document in documents for question in document.questions
    }


def test_the_script_rewrites_the_committed_files_byte_for_byte(tmp_path: Path) -> None:
    make_data.write(tmp_path)
    for name in ("bioasq.json", "nq.jsonl", "qasper.json"):
        assert (tmp_path / name).read_bytes() == (make_data.DATA / name).read_bytes(), (
            f"{name}: run python -m examples.quickstart.make_data"
        )


def test_every_span_of_natural_questions_points_at_the_stated_answer(corpus: make_data.Corpus) -> None:
    answers = stated_answers(corpus.pages)
    rows = [json.loads(line) for line in (make_data.DATA / "nq.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(answers)
    for row in rows:
        tokens = row["document_text"].split(" ")
        (annotation,) = row["annotations"]
        answer = answers[row["question_text"]]
        spans = [" ".join(tokens[span["start_token"] : span["end_token"]]) for span in annotation["short_answers"]]
        long_answer = annotation["long_answer"]
        if answer is None:
            assert (spans, annotation["yes_no_answer"], long_answer["start_token"]) == ([], "NONE", -1)
            continue
        assert (spans, annotation["yes_no_answer"]) == (([], answer.upper()) if answer in ("yes", "no") else ([answer], "NONE"))
        candidate = row["long_answer_candidates"][long_answer["candidate_index"]]
        assert (candidate["start_token"], candidate["end_token"]) == (long_answer["start_token"], long_answer["end_token"])
        assert (tokens[candidate["start_token"]], tokens[candidate["end_token"] - 1]) == ("<P>", "</P>")
        for span in annotation["short_answers"]:
            assert candidate["start_token"] < span["start_token"] < span["end_token"] < candidate["end_token"]


def test_a_fact_is_stated_once_and_a_name_is_given_once(corpus: make_data.Corpus) -> None:
    sentences = [sentence for document in every_document(corpus) for paragraph in document.paragraphs for sentence in paragraph.sentences]
    facts = Counter((sentence.fact.entity, sentence.fact.attribute) for sentence in sentences if sentence.fact)
    assert facts.most_common(1)[0][1] == 1
    assert every_name(corpus).most_common(1)[0][1] == 1


def test_what_a_document_is_asked_without_telling_is_nowhere_told(corpus: make_data.Corpus) -> None:
    asked = [(document, question) for document in every_document(corpus) for question in document.questions if question.fact is None]
    assert asked
    for document, question in asked:
        (entity,) = {entity for entity in document.entities if re.search(rf"\b{entity}\b", question.text)}
        stated = {s.fact.attribute: s.fact for p in document.paragraphs for s in p.sentences if s.fact and s.fact.entity == entity}
        wordings = {
            str(text).format(e=entity)
            for name in stated
            for text in question.type.attributes[name].questions.common + question.type.attributes[name].questions.wide
        }
        assert question.text not in wordings


def test_training_never_draws_a_name_of_the_quickstart(corpus: make_data.Corpus) -> None:
    given = set(every_name(corpus))
    assert all(names.reserved(name) for name in given)
    rng = random.Random(1)  # noqa: S311  # reproducible exercises, no secret
    shapes = {shape for phase in CURRICULUM for shape in phase.shares}
    seen: set[str] = set()
    for shape in sorted(shapes):
        for _ in range(300):
            one = exercise(rng, shape, 4, 0.2)
            text = " ".join([*one.passages, *(f"{question.text} {question.answer}" for question in one.questions)])
            seen.update(re.findall(r"\b[A-Z][a-z]+\b", text))
    assert len(seen) > 2000
    assert not seen & given


def test_paragraphs_are_short_enough_for_five_in_a_prompt(corpus: make_data.Corpus) -> None:
    words = [paragraph.words for document in every_document(corpus) for paragraph in document.paragraphs]
    assert min(words) >= 10
    assert max(words) <= 75


@pytest.mark.parametrize(("reader", "name"), [(read_bioasq, "bioasq.json"), (read_nq, "nq.jsonl"), (read_qasper, "qasper.json")])
def test_the_readers_find_every_answerable_question_with_its_answer(reader: object, name: str, corpus: make_data.Corpus) -> None:
    assert callable(reader)
    source: Source = reader(make_data.DATA / name)
    stated = stated_answers(every_document(corpus))
    documents = {"bioasq.json": corpus.abstracts, "nq.jsonl": corpus.pages, "qasper.json": corpus.papers}[name]
    wanted = {question.text for document in documents for question in document.questions if question.fact}
    answerable = {item.question: item for item in source.items if item.answerable}
    assert answerable.keys() == wanted
    for question, item in answerable.items():
        assert [reference.lower() for reference in item.references] == [str(stated[question]).lower()]
        assert item.evidence
