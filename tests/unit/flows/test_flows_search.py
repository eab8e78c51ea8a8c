"""The search for settings over a trainer in memory: what is tried, kept, taken, and never done twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fake_trainer import FakeTrainer, serving
from pydantic import ValidationError
from test_flows_chunking import write

from flows.clients import ServiceError
from flows.connections import Services
from flows.errors import TrialError
from flows.progress import Silent
from flows.search_spec import SearchSpec
from flows.spec_file import SpecError, load
from flows.stages.prepare import prepare
from flows.stages.search import OF_SETTINGS, Search, search, settings_of
from flows.stages.train import AdapterKey, train
from flows.store import Store
from flows.training_spec import TrainingSpec
from flows.trial import Trial
from flows.validate import cost, findings
from services.trainer.domain import Exited
from services.trainer.failures import words_of_error, words_of_exit

PARAMETERS: dict[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "rank": [2, 4, 8],
    "epochs": {"low": 1, "high": 3},
}


class Bench:
    """A trial with one family, whose base has weights of a kind, and its trainer."""

    def __init__(self, folder: Path, address: str, fake: FakeTrainer) -> None:
        self.folder, self.fake = folder, fake
        self.services = Services({"trainer": address})

    def trial(self, store: str = "store", **asked: Any) -> Trial:
        """A trial that searches so."""
        training = {"context": "none", "sizes": [4, 8], "seeds": [3, 1], "evaluation": 0.3, "batch_size": 2}
        training["search"] = {"parameters": PARAMETERS, "trials": 6} | asked
        path = write(self.folder, {}, training=training)
        path.write_text(path.read_text().replace("arm: served\n", "arm: served\n    size: 8\n"))
        return Trial(load(path), self.folder, Store(str(self.folder / store)), self.services, Silent())

    async def search(self, store: str = "store", **asked: Any) -> Search:
        """What it finds."""
        opened = self.trial(store, **asked)
        return (await search(opened, await prepare(opened), None))["served"]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    fake = FakeTrainer(tmp_path / "adapters")
    async with serving(fake) as address:
        made = Bench(tmp_path, address, fake)
        yield made
        await made.services.close()


async def test_the_lowest_evaluation_loss_is_taken_and_all_sizes_and_seeds_are_trained_with_it(bench: Bench) -> None:
    opened = bench.trial()
    prepared = await prepare(opened)
    found = await search(opened, prepared, None)
    one = found["served"]
    losses = [tried.evaluation_loss for tried in one.tried]
    assert (len(losses), one.best.evaluation_loss, one.size, one.seed) == (6, min(losses), 8, 3)
    assert len(bench.fake.trained) == 6
    adapters = await train(opened, prepared, None, settings_of(opened, found))
    assert len(bench.fake.trained) == 9, "the largest size with the first seed was trained already"
    assert adapters[AdapterKey("served", 8, 3)].name == one.best.adapter
    for spec in bench.fake.trained[6:]:
        assert spec.sft.lora.rank == one.best.settings["rank"]
        assert spec.sft.optimization.learning_rate == one.best.settings["learning_rate"]


async def test_a_search_that_was_interrupted_goes_on_as_if_it_had_not_been(bench: Bench) -> None:
    whole = await bench.search("undisturbed")
    trained = len(bench.fake.trained)
    bench.fake.jobs.clear()
    bench.fake.trained.clear()
    bench.fake.lasts = 4
    with pytest.raises(ServiceError):
        await bench.search()
    bench.fake.lasts = 10**9
    again = await bench.search()
    assert again == whole
    assert len(bench.fake.trained) == trained, "no job twice"
    assert await bench.search() == whole
    assert len(bench.fake.trained) == trained


async def test_more_trials_go_on_from_where_it_ended(bench: Bench) -> None:
    first = await bench.search(trials=3)
    more = await bench.search(trials=7)
    assert more.tried[:3] == first.tried
    assert len({spec.adapter_name for spec in bench.fake.trained}) == len(bench.fake.trained) == 7


async def test_another_seed_tries_other_settings(bench: Bench) -> None:
    one, other = await bench.search(trials=2), await bench.search(trials=2, seed=1)
    assert one.tried[0].settings != other.tried[0].settings


async def test_no_trial_begins_after_the_hours_of_training_are_spent(bench: Bench) -> None:
    # Each trains for half an hour.
    found = await bench.search(hours=1.2)
    assert (len(found.tried), found.wanted) == (3, 6)
    assert len((await bench.search(hours=0.1, seed=5)).tried) == 1


async def test_what_is_proposed_twice_is_trained_once_and_its_time_is_counted_once(bench: Bench) -> None:
    found = await bench.search(parameters={"rank": [4], "learning_rate": [1e-3], "epochs": [1]}, hours=0.6)
    assert len(found.tried) == 6
    assert len(bench.fake.trained) == 1


async def test_trials_that_fail_are_reported_kept_and_passed_over(bench: Bench) -> None:
    bench.fake.failing = (2,)
    found = await bench.search(trials=10)
    failed = [one for one in found.tried if one.evaluation_loss is None]
    assert {one.settings["rank"] for one in failed} == {2}
    assert {(one.error, one.seconds) for one in failed} == {("the loss is no number any more", 900.0)}
    assert found.best.settings["rank"] != 2
    trained = len(bench.fake.trained)
    assert await bench.search(trials=10) == found
    assert len(bench.fake.trained) == trained, "what failed is not tried again"


async def test_what_the_trainer_refuses_is_passed_over_too(bench: Bench) -> None:
    bench.fake.refused = (2, 4)
    found = await bench.search(trials=10)
    assert found.best.settings["rank"] == 8
    assert any("the batch cannot be divided" in one.error for one in found.tried)


async def test_a_search_of_which_all_fails_says_why(bench: Bench) -> None:
    bench.fake.failing = (2, 4, 8)
    with pytest.raises(TrialError, match=r"training.served.search: all 6 trials failed, the first because: the loss is no number any more"):
        await bench.search()


async def test_where_only_settings_that_failed_are_left_nothing_is_trained_again(bench: Bench) -> None:
    bench.fake.failing = (2, 4, 8)
    with pytest.raises(TrialError, match="all 6 trials failed"):
        await bench.search(parameters={"rank": [2, 4, 8]})
    assert sorted(spec.sft.lora.rank for spec in bench.fake.trained) == [2, 4, 8]


async def test_settings_that_failed_are_not_proposed_while_there_are_others(bench: Bench) -> None:
    bench.fake.failing = (8,)
    found = await bench.search(parameters={"rank": [2, 4, 8], "learning_rate": [1e-3]}, trials=8)
    assert [one.settings["rank"] for one in found.tried].count(8) <= 1


@pytest.mark.parametrize("failure", [MemoryError("x"), RuntimeError("CUDA out of memory")])
def test_failures_of_settings_are_known_by_the_trainer_s_words(failure: BaseException) -> None:
    assert any(words in words_of_error(failure) for words in OF_SETTINGS)
    assert any(words in words_of_exit(Exited(-9)) for words in OF_SETTINGS)


async def test_a_full_disk_ends_a_search_and_is_not_kept_as_a_failure_of_settings(bench: Bench) -> None:
    bench.fake.failing, bench.fake.why = (2, 4, 8), "the disk is full: free space"
    with pytest.raises(TrialError, match="the disk is full"):
        await bench.search()
    bench.fake.failing = ()
    assert all(one.evaluation_loss is not None for one in (await bench.search()).tried)


async def test_a_trainer_that_tells_no_evaluation_loss_is_named(bench: Bench) -> None:
    bench.fake.tells_loss = False
    with pytest.raises(TrialError, match="told no evaluation loss"):
        await bench.search()


async def test_validate_says_how_many_jobs_a_search_adds(bench: Bench) -> None:
    opened = bench.trial(trials=6)
    found, prepared = await findings(opened, contact=False)
    assert prepared is not None
    price = cost(opened.spec, prepared)
    assert (price.training_jobs, price.search_jobs) == (9, 5)
    sizes = [one for one in found if one.where == "training.served.batch_size"]
    assert sizes == []
    larger = bench.trial(parameters={"batch_size": [2, 6]})
    assert any("6 (16 unless set) is more than the smallest" in one.problem for one in (await findings(larger, contact=False))[0])


GOOD = {"model": "m", "sizes": (4,), "evaluation": 0.2}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"evaluation": 0.0, "search": {"parameters": {"rank": [4]}}}, "search goes by the evaluation loss: set evaluation"),
        ({"search": {"parameters": {"rnak": [4]}}}, "search.parameters.rnak: is not searched with method sft; known are learning_rate"),
        ({"search": {"parameters": {"max_length": [64]}}}, "search.parameters.max_length: evaluation losses cannot be compared"),
        ({"search": {"parameters": {"rank": {"low": 4.0, "high": 8.0}}}}, "search.parameters.rank: rank 5.272"),
        ({"search": {"parameters": {"rank": [4, 1024]}}}, "search.parameters.rank: rank 1024: Input should be less than or equal to 512"),
        ({"micro_batch_size": 4, "search": {"parameters": {"batch_size": {"low": 4, "high": 6}}}}, "batch_size 5: micro_batch_size"),
        ({"search": {"parameters": {"epochs": [1], "max_steps": [5]}}}, "give epochs or max_steps, not both"),
        ({"search": {"parameters": {"rank": {"low": 8, "high": 4}}}}, "low (8) must be at most high (4)"),
        ({"search": {"parameters": {"learning_rate": {"low": 0.0, "high": 1.0, "log": True}}}}, "log needs low above 0"),
        ({"search": {"parameters": {"schedule": ["linear", "flat"]}}}, "schedule flat: Input should be"),
        ({"search": {"parameters": {}}}, "at least 1"),
    ],
)
def test_a_search_that_cannot_be_done_is_refused_before_anything_is_spent(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TrainingSpec(**(GOOD | given))
    assert said in str(refused.value)


def test_mistakes_are_told_by_the_keys_that_the_user_wrote(tmp_path: Path) -> None:
    search = {"trials": 3, "parameters": {"rank": {"low": 1, "hihg": 4}}}
    with pytest.raises(SpecError) as refused:
        load(write(tmp_path, {}, training={"evaluation": 0.3, "search": search}))
    assert refused.value.problems == [
        "training.served.search.parameters.rank.high: Field required",
        "training.served.search.parameters.rank.hihg: unknown key; did you mean 'high'?",
    ]


def test_settings_are_put_over_what_the_family_says() -> None:
    given = TrainingSpec(**GOOD, context={"raft": {"distractors": 2}}, lora={"rank": 4, "dora": True}, search={"parameters": {"rank": [8]}})
    made = given.with_settings({"rank": 8, "learning_rate": 1e-3})
    assert (made.lora.rank, made.lora.dora, made.learning_rate, made.search) == (8, True, 1e-3, None)
    assert made.recipe() == TrainingSpec(**GOOD, lora={"rank": 8, "dora": True}, learning_rate=1e-3).recipe()
    assert SearchSpec(parameters={"rank": [2, 8]}).largest("rank") == 8
