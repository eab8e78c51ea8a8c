"""Between stages 1 and 2, where a spec asks for it: what bases know of the training questions. Asks the generator, from memory.

A question is asked with several sets of worked examples: greedily, and, where no greedy answer is right, at a temperature. Only as much of
the pool is asked as a family's sizes need: where it leaves classes out, the pool is read on until there are enough of the others. An answer
is kept under the hash of all that decides it, so none is ever asked for twice.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tunetrial.generator.v1 import generator_pb2

from flows.clients import explain_failure
from flows.connections import exchange
from flows.data.exemplars import Exemplars
from flows.data.knowledge import RULE, Knowledge, is_right, kept, tag, without_answer
from flows.errors import TrialError, UserError
from flows.prompting import Shot, prompt_hash
from flows.records import Item, KnowledgeTag
from flows.spec import Spec
from flows.stages.prepare import Prepared
from flows.stages.serve import serve_base
from flows.store import Rows, digest
from flows.training_spec import KnowledgeSpec
from flows.trial import Trial

VERSION = 1
_IN_FLIGHT = 32
_REFUSED = "ANSWER_REFUSED"
"""A provider did not want to answer: that is no right answer, and asking again would cost again."""
# Questions tagged at least, when more are needed: each round waits for its slowest answer.
_ROUND = 16


@dataclass(frozen=True, slots=True)
class _Question:
    """One answer to be had, and the address under which it is kept. `seed` is None for a greedy one."""

    address: str
    item: Item
    shots: tuple[Shot, ...]
    seed: int | None
    prompt_hash: str


def tagged_families(spec: Spec) -> tuple[str, ...]:
    """Families that arms use and whose base is asked."""
    used = {arm.adapter for arm in spec.arms.values()}
    return tuple(name for name, training in spec.training.items() if name in used and training.knowledge is not None)


def answers_to_ask(spec: Spec, prepared: Prepared) -> tuple[int, int]:
    """At least and at most so many answers, if none were kept: fewest when the base knows all, most when it knows nothing that is kept."""
    depths: dict[str, tuple[KnowledgeSpec, int, int]] = {}
    for family in tagged_families(spec):
        training = spec.training[family]
        settings = training.knowledge or KnowledgeSpec()
        needed = max(training.sizes)
        deepest = len(prepared.untouched) if settings.filters else needed
        # Families that ask the same of one base share the answers.
        same = digest([training.model, settings.model_dump(mode="json", exclude={"keep", "evaluate_on"})])
        _, least, most = depths.get(same, (settings, 0, 0))
        depths[same] = settings, max(least, needed), max(most, deepest)

    def questions(depth: int) -> int:
        return sum(item.answerable for item in prepared.untouched[:depth])

    least = sum(settings.exemplar_sets * questions(depth) for settings, depth, _ in depths.values())
    most = sum(settings.exemplar_sets * (1 + settings.samples) * questions(depth) for settings, _, depth in depths.values())
    return least, most


async def knowledge(trial: Trial, prepared: Prepared) -> Prepared:
    """The same with what the bases know, for each family that wants to know it. UserError where too few questions are left to train on."""
    families = tagged_families(trial.spec)
    trial.progress.stage("knowledge", sum(max(trial.spec.training[family].sizes) for family in families))
    found: dict[str, Knowledge] = {}
    counted: set[str] = set()
    for family in families:
        # One after the other: a family whose base was asked the same finds the answers.
        found[family] = await _Tagger(trial, prepared, family, counted).tags()
    trial.progress.finish("knowledge", f"{sum(len(known.tags) for known in found.values())} questions")
    return replace(prepared, knowledge=found)


class _Tagger:
    """Asks for one family. `counted` holds the addresses of answers that another family has accounted for."""

    def __init__(self, trial: Trial, prepared: Prepared, family: str, counted: set[str]) -> None:
        self._trial, self._prepared, self._family, self._counted = trial, prepared, family, counted
        self._training = trial.spec.training[family]
        settings = self._training.knowledge
        assert settings is not None  # noqa: S101  only such families are asked
        self._settings: KnowledgeSpec = settings
        self._exemplars = Exemplars(prepared.pool, settings.exemplar_sets, settings.shots, trial.spec.data.seed)
        self._identity = {
            "version": VERSION,
            "base": trial.base_identity(self._training.model),
            "max_tokens": settings.max_tokens,
            "stop": list(trial.spec.decoding.stop),
        }
        self._group = digest(self._identity)
        self._rows = Rows(trial.store, "knowledge-answers", self._group)
        self._needed = max(self._training.sizes)
        self._shown = 0
        self._spent: dict[str, Mapping[str, Any]] = {}

    async def tags(self) -> Knowledge:
        candidates = self._prepared.untouched
        tags: list[KnowledgeTag] = []
        while (have := sum(kept(one, self._settings.keep) for one in tags)) < self._needed:
            if len(tags) == len(candidates):
                raise self._too_few(tags, have)
            tags += await self._round(candidates[len(tags) : len(tags) + self._deeper(len(tags), have)])
        self._write(tags)
        new = [row for address, row in self._spent.items() if address not in self._counted]
        self._counted.update(self._spent)
        costs = [row["cost_usd"] for row in new]
        return Knowledge(
            self._training.model,
            tuple(tags),
            self._settings.keep,
            self._settings.measured,
            len(new),
            sum(row["prompt_tokens"] for row in new),
            sum(row["completion_tokens"] for row in new),
            None if None in costs else sum(costs),
        )

    def _deeper(self, tagged: int, have: int) -> int:
        """How many more to tag: as many as would do if the share of kept ones stayed as it is."""
        missing = self._needed - have
        if not tagged:
            return missing
        return max(_ROUND, math.ceil(missing * tagged / have) if have else tagged)

    def _too_few(self, tags: Sequence[KnowledgeTag], have: int) -> UserError:
        counts = Counter(one.known.replace("_", " ") for one in tags)
        said = ", ".join(f"{count} {name}" for name, count in counts.most_common())
        return UserError(
            f"training.{self._family}: {self._needed} training questions are asked for, but {self._training.model} leaves only {have} of "
            f"the {len(tags)} in the pool to the classes of knowledge.keep ({said or 'none asked'}): "
            "lower sizes, keep more classes, or read more data"
        )

    async def _round(self, items: Sequence[Item]) -> list[KnowledgeTag]:
        questions = {item.id: tuple(self._questions(item)) for item in items if item.answerable}
        greedy = {item: [one for one in asked if one.seed is None] for item, asked in questions.items()}
        await self._ask(greedy.values())
        right = {item: [self._is_right(one) for one in asked] for item, asked in greedy.items()}
        sure = [tag(item, found, ()) for item, found in right.items() if any(found)]
        self._advance(sure)
        sampled = {item: [one for one in questions[item] if one.seed is not None] for item, found in right.items() if not any(found)}
        await self._ask(sampled.values())
        others = [tag(item, right[item], [self._is_right(one) for one in asked]) for item, asked in sampled.items()]
        others += [without_answer(item) for item in items if not item.answerable]
        self._advance(others)
        tags = {one.item: one for one in (*sure, *others)}
        return [tags[item.id] for item in items]

    def _advance(self, tags: Sequence[KnowledgeTag]) -> None:
        """Says how many more of the questions that are needed are there."""
        more = min(sum(kept(one, self._settings.keep) for one in tags), self._needed - self._shown)
        self._shown += more
        self._trial.progress.advance("knowledge", more, note=self._family)

    def _questions(self, item: Item) -> Iterator[_Question]:
        """First greedy, then sampled, with every set of worked examples."""
        template = self._trial.template
        try:
            sets = [tuple(Shot(one.question, (), one.references[0]) for one in shown) for shown in self._exemplars.of(item)]
        except UserError as error:
            raise UserError(f"training.{self._family}.{error}") from None
        hashes = [prompt_hash(template.turns(item.question, (), shots)) for shots in sets]
        for seed in (None, *range(self._settings.samples)):
            temperature = None if seed is None else self._settings.temperature
            for shots, shown in zip(sets, hashes, strict=True):
                yield _Question(digest([self._group, shown, seed, temperature]), item, shots, seed, shown)

    def _is_right(self, question: _Question) -> bool:
        return is_right(self._rows[question.address]["text"], question.item.references)

    async def _ask(self, questions: Iterable[Sequence[_Question]]) -> None:
        asked = [question for group in questions for question in group]
        missing = {question.address: question for question in asked if question.address not in self._rows}
        if missing:
            model = await serve_base(self._trial, self._training.model)
            try:
                await self._fetch(model, missing)
            finally:
                self._rows.flush()
        self._spent |= {question.address: self._rows[question.address] for question in asked}

    async def _fetch(self, model: str, missing: Mapping[str, _Question]) -> None:
        requests = {
            address: generator_pb2.BatchGenerateRequest(id=address, answer=self._request(model, question))
            for address, question in missing.items()
        }
        async with self._trial.services.use("generator") as clients:
            async for response in exchange(clients.generator.BatchGenerate, requests, _IN_FLIGHT):
                question = missing[response.id]
                if response.HasField("failure") and response.failure.reason != _REFUSED:
                    failure = explain_failure("generator", response.failure)
                    long = "; lower knowledge.shots" if failure.reason == "PROMPT_TOO_LONG" else ""
                    raise type(failure)(
                        failure.service,
                        failure.code,
                        failure.reason,
                        f"training.{self._family}, item {question.item.id}: {response.failure.message}{long}",
                        users_mistake=failure.exit_code == 2,
                    )
                refused = response.HasField("failure")
                self._rows.add(response.id, _NO_ANSWER if refused else self._row(question, model, response.answer))
                if response.answer.usage.cost_usd:
                    self._rows.flush()  # what was paid for is never paid for twice
                self._trial.progress.advance("knowledge", 0, note=f"{self._family}: {'greedy' if question.seed is None else 'sampled'}")

    def _request(self, model: str, question: _Question) -> generator_pb2.AnswerRequest:
        greedy = question.seed is None
        decoding = generator_pb2.Decoding(
            max_tokens=self._settings.max_tokens,
            temperature=0.0 if greedy else self._settings.temperature,
            top_p=1.0,
            stop=self._trial.spec.decoding.stop,
        )
        if question.seed is not None:
            decoding.seed = question.seed
        return generator_pb2.AnswerRequest(
            model=model,
            question=question.item.question,
            template=self._trial.template.message(question.shots),
            decoding=decoding,
            overflow=generator_pb2.OVERFLOW_ERROR,
        )

    def _row(self, question: _Question, model: str, response: generator_pb2.AnswerResponse) -> dict[str, Any]:
        if response.model != model:
            raise TrialError(f"training.{self._family}: asked {model} and {response.model} answered; no tag can be trusted")
        if response.prompt_hash != question.prompt_hash:
            raise TrialError(
                f"training.{self._family}, item {question.item.id}: the generator rendered another prompt than was asked for "
                f"({response.prompt_hash[:12]}, expected {question.prompt_hash[:12]})"
            )
        usage = response.usage
        return {
            "text": response.text,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cost_usd": usage.cost_usd if usage.HasField("cost_usd") else None,
        }

    def _write(self, tags: Sequence[KnowledgeTag]) -> None:
        """The tags for people and other programs: `knowledge/<key>/tags.jsonl` in the store."""
        inputs = {
            **self._identity,
            "rule": RULE,
            "model": self._training.model,
            "prepared": self._prepared.key,
            "template": self._trial.inputs["template"],
            "settings": self._settings.model_dump(mode="json", exclude={"keep", "evaluate_on"}),
            "items": len(tags),
        }
        key = digest(inputs)
        if not self._trial.store.has("knowledge", key):
            self._trial.store.write_lines("knowledge", key, "tags.jsonl", tag_rows(tags, self._prepared))
            self._trial.store.finish("knowledge", key, inputs)


_NO_ANSWER = {"text": None, "prompt_tokens": 0, "completion_tokens": 0, "cost_usd": None}


def tag_rows(tags: Sequence[KnowledgeTag], prepared: Prepared) -> Iterator[dict[str, Any]]:
    """Tags as rows for people: item, question, class, and the shares of right answers."""
    questions = {item.id: item.question for item in prepared.pool}
    for one in tags:
        shares = {"p_greedy": one.p_greedy, "p_sampled": one.p_sampled}
        yield {"item": one.item, "question": questions[one.item], "class": one.known, **shares}
