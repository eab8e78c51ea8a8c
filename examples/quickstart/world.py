"""The quickstart's invented documents and the questions on them, before they take any file format.

Every name is a reserved one (`make_base.names`), so the base model has met none of them, and every name stands for one thing. Every fact is
stated in exactly one paragraph of one document. What a document leaves out can be asked too: then no passage holds the answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from examples.quickstart.make_base import names
from examples.quickstart.make_base.facts import DRUG, GENE, METHOD, PERSON, PLACE, EntityType, Fact, Wording, ask, every_sentence

_MIN_WORDS, _MAX_WORDS = 15, 60


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence of a document; `fact` is None for one that states nothing."""

    text: str
    fact: Fact | None


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Sentences that are shown together."""

    sentences: tuple[Sentence, ...]

    @property
    def text(self) -> str:
        """Its sentences in a row."""
        return " ".join(sentence.text for sentence in self.sentences)

    @property
    def words(self) -> int:
        """How many words it has."""
        return len(self.text.split())


@dataclass(frozen=True, slots=True)
class Question:
    """A question on a document. `fact`, `paragraph` and `sentence` (its place there) are None when the document does not tell."""

    text: str
    type: EntityType
    fact: Fact | None
    paragraph: int | None
    sentence: int | None


@dataclass(frozen=True, slots=True)
class Document:
    """One invented abstract, page or paper about a few entities."""

    entities: tuple[str, ...]
    paragraphs: tuple[Paragraph, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What documents of one source are made of: their casts (one is drawn a document), facts an entity, questions a document."""

    casts: tuple[tuple[EntityType, ...], ...]
    facts_each: tuple[int, ...]
    questions: tuple[int, ...]
    unanswerable: float


BIOASQ = Plan(((DRUG, GENE), (DRUG, DRUG), (GENE, GENE), (DRUG, DRUG, GENE)), (3, 4), (3, 3, 4), 0.0)
NATURAL_QUESTIONS = Plan(((PLACE, PERSON), (PLACE, PERSON, PERSON), (PLACE, PLACE), (PERSON, PERSON)), (3, 4), (2, 3, 4), 0.07)
QASPER = Plan(((METHOD,) * 3, (METHOD,) * 4), (3, 4, 5), (3, 4, 4), 0.25)


class World:
    """Draws documents; keeps every name unique among all that it has drawn."""

    def __init__(self, seed: str, wording: Wording) -> None:
        self._rng = random.Random(seed)  # noqa: S311  # reproducible documents, no secret
        self._wording = wording
        # "More" could be a name; one that is also a word of a sentence would be hard to tell from it.
        self._taken = {word for sentence in every_sentence() for word in sentence.rstrip(".?").split()}

    def documents(self, plan: Plan, count: int) -> Iterator[Document]:
        """So many documents by the plan."""
        for _ in range(count):
            yield self._document(plan)

    def _fresh(self) -> str:
        while (name := names.draw(self._rng, held_out=True)) in self._taken:
            pass
        self._taken.add(name)
        return name

    def _fact(self, type_: EntityType, entity: str, attribute: str) -> Fact:
        described = type_.attributes[attribute]
        value = self._fresh() if described.kind == "name" else described.draw(self._rng, held_out=True)
        return Fact(type_, entity, attribute, value)

    def _document(self, plan: Plan) -> Document:
        cast = [(type_, self._fresh()) for type_ in self._rng.choice(plan.casts)]
        told = {}
        for type_, entity in cast:
            count = min(self._rng.choice(plan.facts_each), len(type_.attributes) - 1)
            told[entity] = [self._fact(type_, entity, name) for name in self._rng.sample(list(type_.attributes), count)]
        paragraphs = self._paragraphs(cast, told)
        return Document(tuple(entity for _, entity in cast), tuple(paragraphs), tuple(self._questions(plan, cast, told, paragraphs)))

    def _paragraphs(self, cast: list[tuple[EntityType, str]], told: dict[str, list[Fact]]) -> list[Paragraph]:
        """Each entity's facts in paragraphs of one to three; some tell of two entities; short ones get sentences that state nothing."""
        paragraphs: list[Paragraph] = []
        for type_, entity in cast:
            sentences = [Sentence(fact.state(self._rng, self._wording), fact) for fact in told[entity]]
            self._rng.shuffle(sentences)
            fillers = [Sentence(text.format(e=entity), None) for text in self._rng.sample(type_.fillers, len(type_.fillers))]
            while sentences:
                size = self._rng.randint(1, 3)
                part, sentences = sentences[:size], sentences[size:]
                while fillers and (Paragraph(tuple(part)).words < _MIN_WORDS or self._rng.random() < 0.25):
                    part.insert(self._rng.randrange(len(part) + 1), fillers.pop())
                paragraph = Paragraph(tuple(part))
                joined = Paragraph((*paragraphs[-1].sentences, *part)) if paragraphs else paragraph
                if paragraphs and (paragraph.words < _MIN_WORDS or (joined.words <= _MAX_WORDS and self._rng.random() < 0.1)):
                    paragraphs[-1] = joined
                else:
                    paragraphs.append(paragraph)
        return paragraphs

    def _questions(
        self, plan: Plan, cast: list[tuple[EntityType, str]], told: dict[str, list[Fact]], paragraphs: list[Paragraph]
    ) -> Iterator[Question]:
        places = {
            sentence.fact: (index, place)
            for index, paragraph in enumerate(paragraphs)
            for place, sentence in enumerate(paragraph.sentences)
            if sentence.fact is not None
        }
        facts = self._rng.sample(list(places), len(places))
        gaps = [
            (type_, entity, name)
            for type_, entity in cast
            for name in type_.attributes
            if name not in {fact.attribute for fact in told[entity]}
        ]
        self._rng.shuffle(gaps)
        for _ in range(self._rng.choice(plan.questions)):
            if gaps and self._rng.random() < plan.unanswerable:
                type_, entity, attribute = gaps.pop()
                yield Question(ask(self._rng, type_, entity, attribute, self._wording), type_, None, None, None)
            else:
                fact = facts.pop()
                question = ask(self._rng, fact.type, fact.entity, fact.attribute, self._wording)
                yield Question(question, fact.type, fact, *places[fact])
