"""Reading exercises: passages about freshly invented facts, with questions on them.

A fact has two keys, its entity and its attribute. A context in which one key alone finds the answer teaches the model to ignore the other.
So the shapes of context differ in which key decides; the curriculum in `train.py` says in which order they are met.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Literal

from examples.quickstart.make_base import names
from examples.quickstart.make_base.facts import TYPES, UNANSWERABLE, EntityType, Fact, Wording, ask

Shape = Literal["single", "one_entity", "one_attribute", "both", "retrieved", "closed"]
"""single: every entity has one fact · one_entity: the attribute decides · one_attribute: the entity decides · both: the two together
decide · retrieved: as both, in longer passages with sentences that state nothing, as a retriever brings them · closed: no passage."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question on a context. `answer` is `facts.UNANSWERABLE` when no passage tells."""

    text: str
    answer: str
    kind: Literal["name", "number", "yesno", "unanswerable"]
    domain: str


@dataclass(frozen=True, slots=True)
class Exercise:
    """Passages in the order shown, and the questions asked on them one after another."""

    shape: Shape
    passages: tuple[str, ...]
    questions: tuple[Question, ...]

    def prompt(self, question: int = 0) -> str:
        """The user's turn: the passages and one question."""
        return prompt(self.passages, self.questions[question].text)


def prompt(passages: tuple[str, ...], question: str) -> str:
    """The user's turn as the quickstart's trial writes it: every passage as a line `- ...`, then `Question: ...`."""
    return "".join(f"- {passage}\n" for passage in passages) + f"Question: {question}"


def exercise(
    rng: random.Random,
    shape: Shape,
    questions: int,
    unanswerable: float,
    *,
    held_out: bool = False,
    domain: str | None = None,
    wording: Wording = "wide",
) -> Exercise:
    """One exercise with names drawn anew; a share `unanswerable` of the questions asks for what no passage tells."""
    types = [type_ for type_ in TYPES if domain in (None, type_.domain)]
    if shape == "closed":
        return Exercise(shape, (), tuple(_unknown(rng, rng.choice(types), names.draw(rng, held_out), wording) for _ in range(questions)))
    entities = _entities(rng, shape, types, held_out)
    passages = _passages(rng, shape, entities, wording)
    return Exercise(shape, tuple(passages), tuple(_questions(rng, entities, questions, unanswerable, held_out=held_out, wording=wording)))


def _facts(rng: random.Random, type_: EntityType, attributes: list[str], held_out: bool) -> list[Fact]:
    entity = names.draw(rng, held_out)
    return [Fact(type_, entity, name, type_.attributes[name].draw(rng, held_out)) for name in attributes]


def _entities(rng: random.Random, shape: Shape, types: list[EntityType], held_out: bool) -> list[list[Fact]]:
    """The facts of every entity of the context, one list an entity."""
    type_ = rng.choice(types)
    attributes = list(type_.attributes)
    if shape == "single":
        chosen = [rng.choice(types) for _ in range(rng.randint(3, 6))]
        return [_facts(rng, one, [rng.choice(list(one.attributes))], held_out) for one in chosen]
    if shape == "one_entity":
        return [_facts(rng, type_, rng.sample(attributes, rng.randint(3, max(3, len(attributes) - 1))), held_out)]
    if shape == "one_attribute":
        attribute = rng.choice(attributes)
        return [_facts(rng, type_, [attribute], held_out) for _ in range(rng.randint(3, 6))]
    several = shape == "retrieved"
    count = rng.randint(3, 5) if several else rng.randint(2, 4)
    each = rng.choice((2, 3, 3)) if several else rng.choice((2, 2, 3)) if count < 4 else 2
    shared = rng.sample(attributes, each)
    entities = []
    for _ in range(count):
        if rng.random() < 0.85:
            entities.append(_facts(rng, type_, shared if rng.random() < 0.7 else rng.sample(attributes, each), held_out))
        else:
            other = rng.choice(types)
            entities.append(_facts(rng, other, rng.sample(list(other.attributes), 2), held_out))
    for facts in entities:  # a missing fact makes a hard unanswerable question possible
        if len(facts) > 1 and rng.random() < 0.25:
            facts.pop(rng.randrange(len(facts)))
    return entities


def _passages(rng: random.Random, shape: Shape, entities: list[list[Fact]], wording: Wording) -> list[str]:
    if shape == "retrieved":
        return _paragraphs(rng, entities, wording)
    passages: list[str] = []
    for facts in entities:
        sentences = [fact.state(rng, wording) for fact in facts]
        rng.shuffle(sentences)
        if len(sentences) > 1 and rng.random() < 0.6:
            passages.append(" ".join(sentences))
        else:
            passages += sentences
    rng.shuffle(passages)
    return passages


def _paragraphs(rng: random.Random, entities: list[list[Fact]], wording: Wording) -> list[str]:
    """Up to six paragraphs of one to four sentences; an entity may be told of in two, a paragraph may tell of two entities."""
    paragraphs: list[list[str]] = []
    for facts in entities:
        sentences = [fact.state(rng, wording) for fact in facts]
        if rng.random() < 0.5:
            sentences.append(rng.choice(facts[0].type.fillers).format(e=facts[0].entity))
        rng.shuffle(sentences)
        cut = rng.randint(1, len(sentences) - 1) if len(sentences) > 1 and rng.random() < 0.5 else len(sentences)
        paragraphs += [part for part in (sentences[:cut], sentences[cut:]) if part]
    rng.shuffle(paragraphs)
    while len(paragraphs) > 6 or (len(paragraphs) > 4 and rng.random() < 0.3):
        paragraphs.sort(key=len)
        paragraphs[0] = paragraphs[0] + paragraphs.pop(1)
        rng.shuffle(paragraphs)
    texts = [" ".join(paragraph) for paragraph in paragraphs]
    # Natural Questions pages come cut into tokens, full stops apart.
    return [re.sub(r"\.(?= |$)", " .", text) for text in texts] if rng.random() < 0.25 else texts


def _unknown(rng: random.Random, type_: EntityType, entity: str, wording: Wording) -> Question:
    return Question(ask(rng, type_, entity, rng.choice(list(type_.attributes)), wording), UNANSWERABLE, "unanswerable", type_.domain)


def _questions(
    rng: random.Random, entities: list[list[Fact]], count: int, unanswerable: float, *, held_out: bool, wording: Wording
) -> list[Question]:
    questions: list[Question] = []
    bag: list[Fact] = []
    for _ in range(count):
        if rng.random() < unanswerable:
            questions.append(_not_told(rng, entities, held_out, wording))
            continue
        if not bag:
            bag = [fact for facts in entities for fact in facts]
            rng.shuffle(bag)
        fact = bag.pop()
        questions.append(Question(ask(rng, fact.type, fact.entity, fact.attribute, wording), fact.value, fact.kind, fact.type.domain))
    return questions


def _not_told(rng: random.Random, entities: list[list[Fact]], held_out: bool, wording: Wording) -> Question:
    """A question whose entity is present without that attribute (mostly one that another entity has), or whose entity is absent."""
    facts = rng.choice(entities)
    type_, entity = facts[0].type, facts[0].entity
    told = {fact.attribute for fact in facts}
    missing = [name for name in type_.attributes if name not in told]
    if missing and rng.random() < 0.7:
        tempting = [name for name in missing if any(fact.type is type_ and fact.attribute == name for other in entities for fact in other)]
        attribute = rng.choice(tempting if tempting and rng.random() < 0.7 else missing)
    else:
        attribute, entity = rng.choice(facts).attribute, names.draw(rng, held_out)
    return Question(ask(rng, type_, entity, attribute, wording), UNANSWERABLE, "unanswerable", type_.domain)
