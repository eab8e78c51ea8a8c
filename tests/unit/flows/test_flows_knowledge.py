"""What bases know of training questions, over a generator in memory: what is asked, what is kept, and what is trained on."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_generator import Asked, FakeGenerator, serving

from flows.clients import ServiceError
from flows.connections import Services
from flows.errors import TrialError, UserError
from flows.progress import Silent
from flows.records import Item
from flows.spec_file import load
from flows.stages.knowledge import answers_to_ask, knowledge, tag_rows
from flows.stages.prepare import Prepared, prepare
from flows.stages.snapshot import _trained_on
from flows.stages.train import AdapterKey, _divided, _examples
from flows.store import Store
from flows.trial import Trial
from flows.validate import findings

COUNT = 30
KINDS = ("highly_known", "maybe_known", "weakly_known", "unknown")
SETTINGS = {"exemplar_sets": 3, "shots": 2, "samples": 4}


def kind(question: str) -> str:
    """The class that the base is given for a question: by its number."""
    return KINDS[number(question) % 4]


def number(question: str) -> int:
    return int(re.findall(r"\d+", question)[0])


class Memory:
    """A base that knows as much of each question as its number says."""

    def __init__(self) -> None:
        self._greedy: set[str] = set()

    def __call__(self, asked: Asked) -> str:
        question, _, seed = asked
        right, known = f"It is word{number(question)}.", kind(question)
        if known == "highly_known":
            return right
        if known == "maybe_known" and seed is None and question not in self._greedy:
            self._greedy.add(question)
            return right
        return right if known == "weakly_known" and seed == 2 else "It is something else."


@pytest.fixture
def fake() -> FakeGenerator:
    return FakeGenerator(Memory())


Open = Callable[..., Awaitable[tuple[Trial, Prepared]]]


@pytest.fixture
async def opened(tmp_path: Path, fake: FakeGenerator) -> AsyncIterator[Open]:
    """Opens a trial whose families are these, over 30 questions of which 3 have no answer, and prepares it."""
    (tmp_path / "texts").mkdir()
    rows: list[dict[str, Any]] = []
    for n in range(COUNT):
        (tmp_path / "texts" / f"{n}.md").write_text(f"# Thing {n}\n\nThe name of thing {n} is word{n}.\n")
        rows.append({"question": f"What is the name of thing {n}?", "reference": f"word{n}", "cluster": f"{n // 2}"})
    for row in rows[9::10]:
        row |= {"answerable": False, "reference": "unanswerable"}
    (tmp_path / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    services: list[Services] = []
    async with serving(fake) as address:

        async def work(shots: int = 0, **families: dict[str, Any]) -> tuple[Trial, Prepared]:
            first = next(iter(families))
            spec = {
                "name": "things",
                "data": {"reader": "table", "path": "questions.jsonl", "corpus": "texts", "test_items": 6, "near_duplicate": 1.0},
                "models": {"small": {"base": "owner/base"}},
                "training": {name: {"model": "small", **family} for name, family in families.items()},
                "arms": {"base": {"model": "small", "shots": shots}, **{name: {"adapter": name} for name in families}},
                "analysis": {"control": "base", "primary": {"arm": first, "size": max(families[first]["sizes"])}},
            }
            (tmp_path / "trial.yaml").write_text(yaml.safe_dump(spec))
            services.append(Services({"generator": address}))
            trial = Trial(load(tmp_path / "trial.yaml"), tmp_path, Store(str(tmp_path / "store")), services[-1], Silent())
            return trial, await prepare(trial)

        yield work
        for one in services:
            await one.close()


def family(size: int, evaluation: float = 0.0, **settings: Any) -> dict[str, Any]:
    return {"sizes": [size], "evaluation": evaluation, "knowledge": {**SETTINGS, **settings}}


def expected(item: Item) -> str:
    return kind(item.question) if item.answerable else "unanswerable"


async def test_every_question_gets_its_class_and_the_shares_behind_it(opened: Open, fake: FakeGenerator, tmp_path: Path) -> None:
    trial, prepared = await opened(bare=family(20))
    known = (await knowledge(trial, prepared)).knowledge["bare"]
    assert {tag.item: tag.known for tag in known.tags} == {item.id: expected(item) for item in prepared.pool[:20]}
    assert set(known.counts) - {name for name, count in known.counts.items() if count} == set(), "the data have every class"
    shares = {tag.known: (tag.p_greedy, tag.p_sampled) for tag in known.tags}
    assert shares["highly_known"] == (1.0, None)
    assert shares["maybe_known"] == (pytest.approx(1 / 3), None)
    assert shares["weakly_known"] == (0.0, 0.25)
    assert shares["unknown"] == (0.0, 0.0)
    assert shares["unanswerable"] == (None, None)
    # Greedy answers to all that have one, sampled ones only where none of those is right.
    counts = known.counts
    wanted = 3 * (20 - counts["unanswerable"]) + 3 * 4 * (counts["weakly_known"] + counts["unknown"])
    assert fake.asked.total() == known.answers == wanted
    assert (known.prompt_tokens, known.completion_tokens, known.cost_usd) == (10 * wanted, 2 * wanted, None)
    (file,) = (tmp_path / "store" / "knowledge").glob("*/tags.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert rows == list(tag_rows(known.tags, prepared))
    assert rows[0].keys() == {"item", "question", "class", "p_greedy", "p_sampled"}


async def test_it_is_asked_from_memory_with_examples_of_the_pool_that_give_nothing_away(opened: Open, fake: FakeGenerator) -> None:
    trial, prepared = await opened(bare=family(20, max_tokens=7, temperature=0.9))
    await knowledge(trial, prepared)
    pool = {item.question: item for item in prepared.pool}
    for request in fake.requests:
        assert request.WhichOneof("source") is None
        assert request.decoding.max_tokens == 7
        assert request.decoding.temperature == pytest.approx(0.9 if request.decoding.HasField("seed") else 0.0)
        assert len(request.template.examples) == 2
        for shown in request.template.examples:
            assert not shown.passages
            assert pool[shown.question].cluster != pool[request.question].cluster
            assert shown.answer == pool[shown.question].references[0]
    sets = {examples for _, examples, seed in fake.asked if seed is None}
    assert len(sets) < 20, "most questions share their examples"


async def test_families_train_on_the_first_of_what_they_keep_however_deep_that_lies(opened: Open) -> None:
    kept = ["highly_known", "weakly_known"]
    some = family(4, keep=kept) | {"sizes": [4, 8]}
    trial, prepared = await opened(shots=2, some=some, all={"sizes": [8]})
    tagged = await knowledge(trial, prepared)
    untouched = prepared.pool[:-2]
    right = [item for item in untouched if expected(item) in (*kept, "unanswerable")]
    for size in (4, 8):
        made, _ = _examples(trial, tagged.of_family("some"), None, trial.spec.training["some"], size)
        assert [example.item for example in made] == [item.id for item in right[:size]]
    made, _ = _examples(trial, tagged.of_family("all"), None, trial.spec.training["all"], 8)
    assert [example.item for example in made] == [item.id for item in prepared.pool[:8]]
    retrieved = {item.id for item in _trained_on(trial, tagged)}
    assert retrieved == {item.id for item in (*right[:8], *prepared.pool[:8])}
    assert retrieved.isdisjoint(item.id for item in prepared.shots)


async def test_too_few_of_what_is_kept_are_refused_with_the_counts(opened: Open) -> None:
    trial, prepared = await opened(some=family(12, keep=["maybe_known"]))
    with pytest.raises(UserError) as caught:
        await knowledge(trial, prepared)
    said = str(caught.value)
    have = sum(expected(item) in ("maybe_known", "unanswerable") for item in prepared.pool)
    assert f"training.some: 12 training questions are asked for, but small leaves only {have} of the 24 in the pool" in said
    for name in (*KINDS, "unanswerable"):
        assert f"{sum(expected(item) == name for item in prepared.pool)} {name.replace('_', ' ')}" in said
    assert said.endswith("lower sizes, keep more classes, or read more data")


async def test_the_evaluation_part_is_measured_on_the_classes_asked_for_and_training_loses_nothing(opened: Open) -> None:
    known = ["highly_known", "maybe_known"]
    trial, prepared = await opened(all=family(20, 0.4), some=family(20, 0.4, evaluate_on=known))
    tagged = await knowledge(trial, prepared)
    parts = {}
    for name in ("all", "some"):
        own = tagged.of_family(name)
        made, _ = _examples(trial, own, None, trial.spec.training[name], 20)
        rows = _divided(trial, own, made, AdapterKey(name, 20, 1))
        parts[name] = [[row["messages"][0]["content"] for row in part] for part in rows]
    assert parts["all"][0] == parts["some"][0]
    asked = {item.question: expected(item) for item in prepared.pool}
    measured = [shown for shown in parts["all"][1] if any(q in shown and asked[q] in (*known, "unanswerable") for q in asked)]
    assert parts["some"][1] == measured
    assert len(measured) < len(parts["all"][1])


async def test_after_a_failure_nothing_is_asked_twice(opened: Open, fake: FakeGenerator) -> None:
    rare = family(5, keep=["unknown"], samples=2)
    tries, found = 0, None
    while found is None:
        fake.lasts = 25
        # As after a kill: everything is read from the store.
        trial, prepared = await opened(bare=rare)
        with contextlib.suppress(ServiceError):
            found = await knowledge(trial, prepared)
        tries += 1
    assert tries > 2
    assert set(fake.asked.values()) == {1}
    asked = fake.asked.total()
    again = await knowledge(trial, prepared)
    assert fake.asked.total() == asked
    assert again.knowledge == found.knowledge
    # At another temperature only samples are asked for, with more sets only those that are new.
    greedy = sum(seed is None for _, _, seed in fake.asked)
    fake.lasts = 10**9
    await knowledge(*await opened(bare=family(5, keep=["unknown"], samples=2, temperature=0.7)))
    assert sum(times for (_, _, seed), times in fake.asked.items() if seed is None) == greedy
    await knowledge(*await opened(bare=family(5, keep=["unknown"], samples=2, exemplar_sets=4)))
    assert max(fake.asked.values()) == 2


async def test_families_that_ask_the_same_share_answers_which_count_once(opened: Open, fake: FakeGenerator) -> None:
    trial, prepared = await opened(bare=family(20), raft=family(8, keep=["highly_known", "unknown"]))
    assert answers_to_ask(trial.spec, prepared)[1] >= 3 * 5 * sum(item.answerable for item in prepared.pool[:20])
    found = (await knowledge(trial, prepared)).knowledge
    assert set(fake.asked.values()) == {1}
    assert found["bare"].answers + found["raft"].answers == fake.asked.total()
    deeper = {item.question for item in prepared.pool[20:]}
    assert found["raft"].answers == sum(question in deeper for question, _, _ in fake.asked) > 0


async def test_what_a_run_would_ask_lies_within_what_is_said_before(opened: Open, fake: FakeGenerator) -> None:
    trial, prepared = await opened(bare=family(20))
    least, most = answers_to_ask(trial.spec, prepared)
    answerable = sum(item.answerable for item in prepared.pool[:20])
    assert (least, most) == (3 * answerable, 3 * 5 * answerable)
    await knowledge(trial, prepared)
    assert least < fake.asked.total() < most
    plain, prepared = await opened(bare={"sizes": [20]})
    assert answers_to_ask(plain.spec, prepared) == (0, 0)


async def test_what_a_provider_will_not_answer_is_not_known(opened: Open, fake: FakeGenerator) -> None:
    trial, prepared = await opened(bare=family(20))
    refused = next(item for item in prepared.pool[:20] if expected(item) == "highly_known")
    fake.failures = {refused.question: "ANSWER_REFUSED"}
    tags = (await knowledge(trial, prepared)).knowledge["bare"].by_item
    assert tags[refused.id].known == "unknown"


async def test_a_question_that_cannot_be_asked_is_named_with_what_to_change(opened: Open, fake: FakeGenerator) -> None:
    trial, prepared = await opened(bare=family(20))
    item = next(item for item in prepared.pool[:20] if item.answerable)
    fake.failures = {item.question: "PROMPT_TOO_LONG"}
    with pytest.raises(ServiceError, match=rf"training\.bare, item {item.id}: it is too long; lower knowledge\.shots") as caught:
        await knowledge(trial, prepared)
    assert caught.value.exit_code == 2


async def test_an_answer_of_another_model_is_refused(opened: Open, fake: FakeGenerator) -> None:
    trial, prepared = await opened(bare=family(4))
    fake.answers_as = "other"
    with pytest.raises(TrialError, match="asked small and other answered"):
        await knowledge(trial, prepared)


async def test_validation_says_when_the_pool_has_too_few_worked_examples(opened: Open) -> None:
    trial, _ = await opened(bare=family(20, shots=32) | {"batch_size": 4})
    found, _ = await findings(trial, contact=False)
    assert [one.where for one in found if "worked examples" in one.problem] == ["training.bare"]
    assert any("lower shots" in one.problem for one in found)


async def test_a_family_that_does_not_ask_is_left_as_it_was(opened: Open, fake: FakeGenerator) -> None:
    trial, prepared = await opened(bare={"sizes": [4]})
    assert prepared.of_family("bare") is prepared
    assert (await knowledge(trial, prepared)).knowledge == {}
    assert not fake.asked
