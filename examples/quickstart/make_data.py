"""Writes the quickstart's documents and questions in the forms of BioASQ task b, Natural Questions (simplified) and Qasper.

`python -m examples.quickstart.make_data` rewrites `examples/quickstart/data/`; the same arguments give the same bytes. Names, facts,
addresses and ids are invented. The forms are the sources' own, so that the quickstart goes through the readers that real files go through.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.quickstart.make_base.facts import Fact, Wording
from examples.quickstart.world import BIOASQ, NATURAL_QUESTIONS, QASPER, Document, Paragraph, Question, World

DATA = Path(__file__).parent / "data"
Json = dict[str, Any]

_ABSTRACTS, _PAGES, _PAPERS = 78, 80, 68
_FIRST_PUBMED_ID = 990_000_001
_NQ_HEADINGS = ("Overview", "Description", "Background", "Further facts", "Notes")
_QASPER_SECTIONS = ("Introduction", None, "Method", "Experiments ::: Setup", "Experiments ::: Results", "Discussion", "Conclusion")


def _identifier(rng: random.Random) -> str:
    return f"{rng.getrandbits(160):040x}"


def _told(question: Question, document: Document) -> tuple[Paragraph, str]:
    """The paragraph that answers and the sentence in it."""
    if question.paragraph is None or question.sentence is None:
        raise ValueError(f"no paragraph answers {question.text!r}")
    paragraph = document.paragraphs[question.paragraph]
    return paragraph, paragraph.sentences[question.sentence].text


def bioasq(rng: random.Random, documents: Sequence[Document]) -> Json:
    """One abstract a document. A question's snippets are the paragraph that answers and those on its entity that no question asks about."""
    questions = []
    for number, document in enumerate(documents):
        url = f"http://www.ncbi.nlm.nih.gov/pubmed/{_FIRST_PUBMED_ID + 7 * number}"
        unseen = set(range(len(document.paragraphs))) - {question.paragraph for question in document.questions}
        for question in document.questions:
            if question.fact is None or question.paragraph is None:
                raise ValueError("BioASQ has no unanswerable questions")
            also = sorted(index for index in unseen if question.fact.entity in document.paragraphs[index].text.rstrip(".").split())
            unseen.difference_update(also)
            questions.append(
                {
                    "id": f"{rng.getrandbits(96):024x}",
                    "body": question.text,
                    **_bioasq_answer(rng, question.fact, _told(question, document)[1]),
                    "documents": [url],
                    "snippets": [_snippet(url, document, index) for index in (question.paragraph, *also)],
                }
            )
    return {"questions": questions}


def _snippet(url: str, document: Document, index: int) -> Json:
    """A paragraph with its place in the abstract, in characters."""
    start = sum(len(paragraph.text) + 1 for paragraph in document.paragraphs[:index])
    text = document.paragraphs[index].text
    return {
        "document": url,
        "text": text,
        "beginSection": "abstract",
        "endSection": "abstract",
        "offsetInBeginSection": start,
        "offsetInEndSection": start + len(text),
    }


def _bioasq_answer(rng: random.Random, fact: Fact, sentence: str) -> Json:
    """Type and answers. A few name questions are lists of one, or summaries without an exact answer; ideal answers are texts or lists."""
    if fact.kind == "yesno":
        return {"type": "yesno", "exact_answer": fact.value, "ideal_answer": [sentence]}
    type_ = rng.choices(("factoid", "list", "summary"), (0.88, 0.06, 0.06))[0] if fact.kind == "name" else "factoid"
    if type_ == "summary":
        return {"type": type_, "ideal_answer": [fact.value]}
    exact = [[fact.value]] if type_ == "list" or rng.random() < 0.5 else [fact.value]
    return {"type": type_, "exact_answer": exact, "ideal_answer": sentence if rng.random() < 0.3 else [sentence]}


def _tokens(sentence: str) -> list[str]:
    """The words of a sentence with its full stop apart, as the source cuts them."""
    return [*sentence.removesuffix(".").split(" "), "."]


def natural_questions(rng: random.Random, documents: Sequence[Document]) -> Iterator[Json]:
    """One page a document; a row repeats the page's tokens for each question, as in the source."""
    for document in documents:
        title = document.entities[0]
        page = [title, "-", "wikipedia", "<H1>", title, "</H1>"]
        candidates: list[Json] = []
        sentences: list[list[int]] = []
        for index, paragraph in enumerate(document.paragraphs):
            if index and rng.random() < 0.6:
                page += ["<H2>", *rng.choice(_NQ_HEADINGS).split(" "), "</H2>"]
            start = len(page)
            page.append("<P>")
            sentences.append([])
            for sentence in paragraph.sentences:
                sentences[-1].append(len(page))
                page += _tokens(sentence.text)
            page.append("</P>")
            candidates.append({"start_token": start, "top_level": True, "end_token": len(page)})
        url = f"https://en.wikipedia.org//w/index.php?title={title}&amp;oldid={rng.randrange(10**9, 2 * 10**9)}"
        for question in document.questions:
            yield {
                "document_text": " ".join(page),
                "long_answer_candidates": candidates,
                "question_text": question.text,
                "annotations": [_annotation(rng, question, document, candidates, sentences)],
                "document_url": url,
                "example_id": rng.randrange(-(2**62), 2**62),
            }


def _annotation(rng: random.Random, question: Question, document: Document, candidates: list[Json], sentences: list[list[int]]) -> Json:
    long_answer = {"start_token": -1, "candidate_index": -1, "end_token": -1}
    annotation: Json = {"yes_no_answer": "NONE", "long_answer": long_answer, "short_answers": [], "annotation_id": rng.randrange(2**62)}
    if question.fact is None or question.paragraph is None or question.sentence is None:
        return annotation
    candidate = candidates[question.paragraph]
    long_answer.update(start_token=candidate["start_token"], candidate_index=question.paragraph, end_token=candidate["end_token"])
    if question.fact.kind == "yesno":
        annotation["yes_no_answer"] = question.fact.value.upper()
    else:
        _, sentence = _told(question, document)
        start = sentences[question.paragraph][question.sentence] + _tokens(sentence).index(question.fact.value)
        annotation["short_answers"] = [{"start_token": start, "end_token": start + 1}]
    return annotation


def qasper(rng: random.Random, documents: Sequence[Document]) -> Json:
    """One paper a document, its paragraphs spread over sections; every question has one to three annotators."""
    return {f"2599.{number:05d}": _paper(rng, document) for number, document in enumerate(documents, start=1)}


def _paper(rng: random.Random, document: Document) -> Json:
    first, *others = document.entities
    listed = f"{', '.join(document.entities[:-1])} and {document.entities[-1]}"
    places = sorted(rng.sample(range(len(_QASPER_SECTIONS)), min(len(_QASPER_SECTIONS), len(document.paragraphs))))
    sections: list[Json] = [{"section_name": _QASPER_SECTIONS[place], "paragraphs": []} for place in places]
    for index, paragraph in enumerate(document.paragraphs):
        sections[index * len(sections) // len(document.paragraphs)]["paragraphs"].append(paragraph.text)
    return {
        "title": f"{first} and its rivals: a study of {len(others) + 1} methods",
        "abstract": f"In this paper we study the methods {listed}. We describe each of them and report what we found.",
        "full_text": sections,
        "qas": [
            {
                "question": question.text,
                "question_id": _identifier(rng),
                "nlp_background": "",
                "topic_background": "",
                "paper_read": "",
                "search_query": "",
                "question_writer": _identifier(rng),
                "answers": [
                    {"answer": _qasper_answer(rng, question, document), "annotation_id": _identifier(rng), "worker_id": _identifier(rng)}
                    for _ in range(rng.choice((1, 1, 2, 3)))
                ],
            }
            for question in document.questions
        ],
    }


def _qasper_answer(rng: random.Random, question: Question, document: Document) -> Json:
    answer: Json = {
        "unanswerable": question.fact is None,
        "extractive_spans": [],
        "yes_no": None,
        "free_form_answer": "",
        "evidence": [],
        "highlighted_evidence": [],
    }
    if question.fact is None:
        return answer
    paragraph, sentence = _told(question, document)
    answer.update(evidence=[paragraph.text], highlighted_evidence=[sentence])
    if question.fact.kind == "yesno":
        answer["yes_no"] = question.fact.value == "yes"
    elif rng.random() < 0.75:
        answer["extractive_spans"] = [question.fact.value]
    else:
        answer["free_form_answer"] = question.fact.value
    return answer


@dataclass(frozen=True, slots=True)
class Corpus:
    """The documents of the three sources."""

    abstracts: tuple[Document, ...]
    pages: tuple[Document, ...]
    papers: tuple[Document, ...]


def invent(seed: str = "quickstart", wording: Wording = "wide") -> Corpus:
    """All documents of the quickstart; no name and no fact is in two of them."""
    world = World(seed, wording)
    return Corpus(
        tuple(world.documents(BIOASQ, _ABSTRACTS)),
        tuple(world.documents(NATURAL_QUESTIONS, _PAGES)),
        tuple(world.documents(QASPER, _PAPERS)),
    )


def write(folder: Path, seed: str = "quickstart", wording: Wording = "wide") -> None:
    """Writes `bioasq.json`, `nq.jsonl` and `qasper.json` to `folder`."""
    corpus = invent(seed, wording)
    rng = random.Random(f"{seed} ids")  # noqa: S311
    folder.mkdir(parents=True, exist_ok=True)
    abstracts, papers = bioasq(rng, corpus.abstracts), qasper(rng, corpus.papers)
    pages = "".join(f"{json.dumps(page)}\n" for page in natural_questions(rng, corpus.pages))
    (folder / "bioasq.json").write_text(json.dumps(abstracts, indent=1) + "\n", encoding="utf-8")
    (folder / "nq.jsonl").write_text(pages, encoding="utf-8")
    (folder / "qasper.json").write_text(json.dumps(papers, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Writes the three files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument("--seed", default="quickstart")
    parser.add_argument("--wording", choices=("common", "wide"), default="wide", help="which templates to draw from")
    arguments = parser.parse_args()
    write(arguments.out, arguments.seed, arguments.wording)


if __name__ == "__main__":
    main()
