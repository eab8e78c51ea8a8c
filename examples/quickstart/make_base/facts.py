"""What can be said in the invented world: kinds of entity, their attributes, and the wordings of statements and questions.

Wordings come in two groups, `common` and `wide`; both are trained on, and documents may be written from the common ones alone.
A statement of a yes/no attribute is a pair: the affirmative sentence and the negative one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from examples.quickstart.make_base import names

UNANSWERABLE = "unanswerable"
Kind = Literal["name", "number", "yesno"]
Wording = Literal["common", "wide"]
Statement = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Wordings:
    """Templates with `{e}` for the entity and `{v}` for the value."""

    common: tuple[Statement, ...]
    wide: tuple[Statement, ...]

    def choose(self, rng: random.Random, wording: Wording) -> Statement:
        """A template at random: of the common ones, or of all."""
        return rng.choice(self.common if wording == "common" else self.common + self.wide)


@dataclass(frozen=True, slots=True)
class Attribute:
    """Something that an entity has: how its value is drawn, stated and asked for."""

    kind: Kind
    statements: Wordings
    questions: Wordings
    number: Callable[[random.Random], str] | None = None

    def draw(self, rng: random.Random, held_out: bool) -> str:
        """A value: an invented name, a number with its unit, or yes/no."""
        if self.kind == "yesno":
            return rng.choice(("yes", "no"))
        if self.number is not None:
            return self.number(rng)
        return names.draw(rng, held_out)


@dataclass(frozen=True, slots=True, eq=False)
class EntityType:
    """A kind of entity. `fillers` are sentences about it that state no attribute."""

    domain: str
    name: str
    attributes: dict[str, Attribute]
    fillers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """One value of one attribute of one entity."""

    type: EntityType
    entity: str
    attribute: str
    value: str

    @property
    def kind(self) -> Kind:
        """What its value is: a name, a number, or yes/no."""
        return self.type.attributes[self.attribute].kind

    def state(self, rng: random.Random, wording: Wording = "wide") -> str:
        """A sentence that states the fact."""
        template = self.type.attributes[self.attribute].statements.choose(rng, wording)
        if isinstance(template, tuple):
            template = template[0] if self.value == "yes" else template[1]
        return template.format(e=self.entity, v=self.value)


def ask(rng: random.Random, type_: EntityType, entity: str, attribute: str, wording: Wording = "wide") -> str:
    """A question for one attribute of one entity."""
    template = type_.attributes[attribute].questions.choose(rng, wording)
    if isinstance(template, tuple):
        raise TypeError(f"the question templates of {type_.name}.{attribute} must be plain strings")
    return template.format(e=entity)


def _whole(low: int, high: int, unit: str = "") -> Callable[[random.Random], str]:
    return lambda rng: f"{rng.randint(low, high)}{unit}"


def _tenths(low: int, high: int) -> Callable[[random.Random], str]:
    return lambda rng: f"{rng.randint(low, high)}.{rng.randint(0, 9)}"


_Statements = tuple[Statement, ...]
_Questions = tuple[str, ...]


def _name(statements: _Statements, wide: _Statements, questions: _Questions, wide_questions: _Questions) -> Attribute:
    return Attribute("name", Wordings(statements, wide), Wordings(questions, wide_questions))


def _number(
    number: Callable[[random.Random], str],
    statements: _Statements,
    wide: _Statements,
    questions: _Questions,
    wide_questions: _Questions,
) -> Attribute:
    return Attribute("number", Wordings(statements, wide), Wordings(questions, wide_questions), number)


def _yesno(statements: _Statements, wide: _Statements, questions: _Questions, wide_questions: _Questions) -> Attribute:
    return Attribute("yesno", Wordings(statements, wide), Wordings(questions, wide_questions))


DRUG = EntityType(
    "bio",
    "drug",
    {
        "target": _name(
            (
                "{e} targets {v}.",
                "The target of {e} is {v}.",
                "The drug {e} acts on the protein {v}.",
                "Studies show that {e} blocks the protein {v}.",
            ),
            ("It was found that {e} binds to {v}.", "{e} works by blocking {v}.", "The protein {v} is the target of {e}."),
            ("What is the target of {e}?", "Which protein does {e} act on?"),
            ("Which protein is blocked by {e}?", "What does {e} bind to?"),
        ),
        "treats": _name(
            (
                "{e} is used to treat {v}.",
                "The drug {e} is given against {v}.",
                "The main use of {e} is treating {v}.",
                "Doctors prescribe {e} for {v}.",
            ),
            (
                "Patients with {v} are treated with {e}.",
                "Against {v} doctors often choose {e}.",
                "{e} has been shown to help patients with {v}.",
            ),
            ("What does {e} treat?", "Which disease is {e} used to treat?"),
            ("For which disease is {e} prescribed?", "What is {e} used for?"),
        ),
        "maker": _name(
            ("{e} is made by {v}.", "The maker of {e} is {v}.", "The drug {e} is sold by the company {v}."),
            ("The company {v} makes and sells {e}.", "{v} is the company behind {e}."),
            ("Who makes {e}?", "Which company is the maker of {e}?"),
            ("By which company is {e} sold?", "Which company makes the drug {e}?"),
        ),
        "dose": _number(
            _whole(2, 98, " mg"),
            ("The daily dose of {e} is {v}.", "Adults take {e} at a dose of {v}.", "{e} is dosed at {v}."),
            ("A dose of {v} of {e} is taken each day.", "For adults the dose of {e} was set at {v}."),
            ("What is the dose of {e}?", "What is the daily dose of {e}?"),
            ("How much {e} do adults take?", "At which dose is {e} taken?"),
        ),
        "halflife": _number(
            _whole(2, 98, " hours"),
            ("The half-life of {e} is {v}.", "{e} has a half-life of {v}.", "In blood {e} shows a half-life of {v}."),
            ("A half-life of {v} was measured for {e}.", "After {v} half of {e} has left the blood."),
            ("What is the half-life of {e}?", "How long is the half-life of {e}?"),
            ("Which half-life does {e} have?", "After how many hours has half of {e} left the blood?"),
        ),
        "child": _yesno(
            (
                ("{e} is approved for children.", "{e} is not approved for children."),
                ("The drug {e} is safe for children.", "The drug {e} is not safe for children."),
            ),
            (("Children may take {e}.", "Children may not take {e}."),),
            ("Is {e} approved for children?", "Is {e} safe for children?"),
            ("May children take {e}?", "Can {e} be given to children?"),
        ),
    },
    (
        "Several trials of {e} have been reported.",
        "More work on {e} is under way.",
        "The reports on {e} come from many hospitals.",
        "Little was known about {e} before these studies.",
        "The safety of {e} is reviewed each year.",
        "Patients were asked how they felt after taking {e}.",
    ),
)

GENE = EntityType(
    "bio",
    "gene",
    {
        "disease": _name(
            ("{e} is linked to {v}.", "The gene {e} is a cause of {v}.", "Mutations of {e} lead to {v}."),
            ("Patients with {v} often carry changes in {e}.", "Changes in the gene {e} can cause {v}."),
            ("Which disease is linked to {e}?", "What do mutations of {e} lead to?"),
            ("Which disease do changes in {e} cause?", "What is caused by mutations of {e}?"),
        ),
        "tissue": _name(
            ("{e} is expressed in {v} cells.", "The gene {e} is active in {v} cells.", "Expression of {e} is seen in {v} cells."),
            ("In {v} cells the gene {e} is switched on.", "High levels of {e} were found in {v} cells."),
            ("In which cells is {e} expressed?", "Where is the gene {e} active?"),
            ("Which cells express {e}?", "In which cells is the gene {e} switched on?"),
        ),
        "chrom": _number(
            _whole(1, 22),
            ("{e} lies on chromosome {v}.", "The gene {e} is found on chromosome {v}.", "{e} maps to chromosome {v}."),
            ("On chromosome {v} one finds {e}.", "Chromosome {v} carries the gene {e}."),
            ("On which chromosome is {e}?", "Which chromosome carries {e}?"),
            ("To which chromosome does {e} map?", "What chromosome is {e} found on?"),
        ),
        "essential": _yesno(
            (
                ("{e} is essential for growth.", "{e} is not essential for growth."),
                ("The gene {e} is needed for growth.", "The gene {e} is not needed for growth."),
            ),
            (("Growth depends on {e}.", "Growth does not depend on {e}."),),
            ("Is {e} essential for growth?", "Is the gene {e} needed for growth?"),
            ("Does growth depend on {e}?", "Is {e} needed for growth?"),
        ),
    },
    (
        "The gene {e} has been studied in many families.",
        "The role of {e} was not clear for a long time.",
        "Two groups described {e} in the same year.",
        "Further work on {e} is needed.",
        "The first report on {e} was short.",
    ),
)

PLACE = EntityType(
    "ency",
    "place",
    {
        "capital": _name(
            ("The capital of {e} is {v}.", "{e} has its capital at {v}.", "In {e} the capital city is {v}."),
            ("The city of {v} is the capital of {e}.", "{e} is governed from its capital {v}."),
            ("What is the capital of {e}?", "Which city is the capital of {e}?"),
            ("From which city is {e} governed?", "Which capital does {e} have?"),
        ),
        "river": _name(
            ("The longest river in {e} is the {v}.", "{e} is crossed by the river {v}.", "The main river of {e} is the {v}."),
            ("The river {v} flows through {e}.", "Of all rivers in {e} the {v} is the longest."),
            ("Which river crosses {e}?", "What is the longest river in {e}?"),
            ("Which river flows through {e}?", "What is the main river of {e}?"),
        ),
        "language": _name(
            ("People in {e} speak {v}.", "The language of {e} is {v}.", "{e} uses the language {v}."),
            ("In {e} most people speak {v} at home.", "{v} is the language spoken in {e}."),
            ("Which language do people in {e} speak?", "What is the language of {e}?"),
            ("Which language is spoken in {e}?", "What do people in {e} speak?"),
        ),
        "founded": _number(
            _whole(1000, 1999),
            ("{e} was founded in {v}.", "The town {e} dates from {v}.", "The founding year of {e} is {v}."),
            ("In {v} settlers founded {e}.", "The history of {e} begins in {v}."),
            ("When was {e} founded?", "In which year was {e} founded?"),
            ("What is the founding year of {e}?", "When does the history of {e} begin?"),
        ),
        "coast": _yesno(
            (
                ("{e} lies on the coast.", "{e} does not lie on the coast."),
                ("The land of {e} reaches the coast.", "The land of {e} does not reach the coast."),
            ),
            (("{e} has access to the sea.", "{e} has no access to the sea."),),
            ("Does {e} lie on the coast?", "Does the land of {e} reach the coast?"),
            ("Does {e} have access to the sea?", "Is {e} on the coast?"),
        ),
    },
    (
        "Many visitors come to {e} each year.",
        "The old maps of {e} are kept in a museum.",
        "Winters in {e} are mild and long.",
        "The markets of {e} are known for their cloth.",
        "The people of {e} are proud of their past.",
        "A new road now leads to {e}.",
    ),
)

PERSON = EntityType(
    "ency",
    "person",
    {
        "birthplace": _name(
            ("{e} was born in {v}.", "The birthplace of {e} is {v}.", "{e} came into the world in {v}."),
            ("The town of {v} is where {e} was born.", "{v} is the birthplace of {e}."),
            ("Where was {e} born?", "What is the birthplace of {e}?"),
            ("In which town was {e} born?", "Where did {e} come into the world?"),
        ),
        "teacher": _name(
            ("{e} studied under {v}.", "The teacher of {e} was {v}.", "{e} was a student of {v}."),
            ("As a young writer {e} was taught by {v}.", "{v} was the teacher of {e}."),
            ("Who was the teacher of {e}?", "Who did {e} study under?"),
            ("By whom was {e} taught?", "Who taught {e}?"),
        ),
        "wrote": _name(
            ("{e} wrote the book {v}.", "The best known book by {e} is {v}.", "{e} is the author of {v}."),
            ("The book {v} was written by {e}.", "With the book {v} the writer {e} became famous."),
            ("Which book did {e} write?", "What is the best known book by {e}?"),
            ("Which book was written by {e}?", "With which book did {e} become famous?"),
        ),
        "died": _number(
            _whole(1000, 1999),
            ("{e} died in {v}.", "The death of {e} came in {v}.", "The life of {e} ended in {v}."),
            ("In {v} news came that {e} had died.", "{e} lived until {v}."),
            ("When did {e} die?", "In which year did {e} die?"),
            ("What is the year of death of {e}?", "Until when did {e} live?"),
        ),
    },
    (
        "The letters of {e} were found much later.",
        "Many students admired {e}.",
        "A statue of {e} stands in the old market.",
        "Little is known about the early life of {e}.",
        "Friends said that {e} liked long walks.",
    ),
)

METHOD = EntityType(
    "paper",
    "method",
    {
        "dataset": _name(
            ("{e} was trained on {v}.", "The dataset used for {e} is {v}.", "The authors trained {e} on the dataset {v}."),
            ("We train {e} on {v}.", "The training data of {e} come from {v}."),
            ("Which dataset was {e} trained on?", "What dataset is used for {e}?"),
            ("Which dataset do the authors use for {e}?", "From where do the training data of {e} come?"),
        ),
        "author": _name(
            ("{e} was proposed by {v}.", "The first author of {e} is {v}.", "The method {e} was introduced by {v}."),
            ("It was {v} who proposed {e}.", "We thank {v} for the idea of {e}."),
            ("Who proposed {e}?", "Who is the first author of {e}?"),
            ("By whom was {e} introduced?", "Who introduced the method {e}?"),
        ),
        "baseline": _name(
            ("{e} is compared with {v}.", "The baseline for {e} is {v}.", "The method {e} beats the baseline {v}."),
            ("As a baseline for {e} we use {v}.", "We compare {e} with the baseline {v}."),
            ("What is the baseline for {e}?", "Which baseline is {e} compared with?"),
            ("Which baseline do they use for {e}?", "What do the authors compare {e} with?"),
        ),
        "score": _number(
            _tenths(20, 98),
            ("{e} reaches an accuracy of {v}.", "The accuracy of {e} is {v}.", "The method {e} has an accuracy of {v}."),
            ("On the test set {e} scores an accuracy of {v}.", "An accuracy of {v} is reported for {e}."),
            ("What is the accuracy of {e}?", "Which accuracy does {e} reach?"),
            ("What accuracy is reported for {e}?", "How accurate is {e}?"),
        ),
        "layers": _number(
            _whole(2, 96),
            ("{e} has {v} layers.", "The number of layers in {e} is {v}.", "The network {e} uses {v} layers."),
            ("We build {e} with {v} layers.", "A stack of {v} layers is used in {e}."),
            ("How many layers does {e} have?", "What is the number of layers in {e}?"),
            ("With how many layers is {e} built?", "How many layers are used in {e}?"),
        ),
        "code": _yesno(
            (
                ("The code of {e} is public.", "The code of {e} is not public."),
                ("{e} is released as open source.", "{e} is not released as open source."),
            ),
            (("We release the code of {e}.", "We do not release the code of {e}."),),
            ("Is the code of {e} public?", "Is {e} released as open source?"),
            ("Do the authors release the code of {e}?", "Can one get the code of {e}?"),
        ),
    },
    (
        "We now describe {e} in more detail.",
        "The results for {e} are shown in the table.",
        "Some errors of {e} remain hard to explain.",
        "We leave further study of {e} to later work.",
        "The idea behind {e} is simple.",
    ),
)

TYPES = (DRUG, GENE, PLACE, PERSON, METHOD)
DOMAINS = tuple(dict.fromkeys(type_.domain for type_ in TYPES))


def every_sentence() -> Iterator[str]:
    """All statements, questions and fillers, with nothing in the places of entity and value."""
    for type_ in TYPES:
        for filler in type_.fillers:
            yield filler.format(e="")
        for attribute in type_.attributes.values():
            for wordings in (attribute.statements, attribute.questions):
                for template in wordings.common + wordings.wide:
                    for sentence in template if isinstance(template, tuple) else (template,):
                        yield sentence.format(e="", v="")
