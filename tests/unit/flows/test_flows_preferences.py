"""Pairs of answers for dpo: made of an earlier run or read from a file, and never of a question of the test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError
from test_flows_chunking import write

from flows.data.leakage import LeakageError
from flows.data.preferences import Preferences
from flows.errors import DataError, UserError
from flows.progress import Silent
from flows.prompting import Shot, prompt_hash
from flows.records import Answer, Item, Judgement, Passage
from flows.spec_file import load
from flows.stages.preferences import preferences
from flows.stages.prepare import prepare
from flows.stages.train import AdapterKey, _method, rows_of
from flows.store import to_table
from flows.training_spec import TrainingSpec
from flows.trial import Trial, open_trial
from flows.validate import findings

PASSAGES = tuple(Passage(f"old#{n}", "old", f"Passage {n}.", "Old") for n in range(3))
ITEMS = tuple(Item(f"old-{n}", f"Who built bridge number {n} of the old town?", (f"mason {n}",), f"cluster-{n // 2}") for n in range(10))


def opened(folder: Path, preferences: dict[str, Any], **training: Any) -> Trial:
    """A trial that learns from such pairs."""
    path = write(folder, {}, training={"method": "dpo", "preferences": preferences, "sizes": [2]} | training)
    raw = yaml.safe_load(path.read_text())
    del raw["training"]["served"]["context"]
    path.write_text(yaml.safe_dump(raw))
    return open_trial(load(path), folder / "home", Silent())


async def pairs(trial: Trial) -> Preferences:
    """What is found for its family."""
    return (await preferences(trial, await prepare(trial))).pairs["served"]


class Earlier:
    """A finished run as its folder keeps it."""

    def __init__(self, folder: Path, template: Any, items: Sequence[Item] = ITEMS) -> None:
        self.folder, self.template, self.items = folder, template, {item.id: item for item in items}
        self.answers: list[Answer] = []
        self.judgements: list[Judgement] = []

    def says(self, who: str, item: str, text: str | None, *scores: float | None, **more: Any) -> None:
        """An answer among the passages named, with a judgement for each score."""
        shown, sample = more.get("shown", ("old#0", "old#1")), more.get("sample", 0)
        found = [passage for passage in PASSAGES if passage.id in shown]
        turns = self.template.turns(self.items[item].question, found, more.get("shots", ()))
        finish = more.get("finish", "stop")
        self.answers.append(
            Answer(who, item, sample, text, False, finish, 9, 3, 1.0, None, prompt_hash(turns), tuple(one.id for one in found), (), ())
        )
        self.judgements += [Judgement(who, item, sample, "accuracy", n, score, "", 0, 0, None) for n, score in enumerate(scores)]

    def finish(self) -> Path:
        """Its folder."""
        self.folder.mkdir(exist_ok=True)
        tables: dict[str, tuple[type, Sequence[Any]]] = {
            "items": (Item, list(self.items.values())),
            "passages": (Passage, PASSAGES),
            "answers": (Answer, self.answers),
            "judgements": (Judgement, self.judgements),
        }
        for name, (record, records) in tables.items():
            pq.write_table(to_table(record, records), self.folder / f"{name}.parquet")
        (self.folder / "outcome.json").write_text("{}")
        return self.folder


@pytest.fixture
def earlier(tmp_path: Path) -> Earlier:
    (tmp_path / "rows.jsonl").write_text("")
    return Earlier(tmp_path / "earlier", opened(tmp_path, {"file": "rows.jsonl"}).template)


def filled(earlier: Earlier) -> Earlier:
    """Each question with a right and a wrong answer."""
    for item in earlier.items:
        earlier.says("base", item, f"mason {item}", 5.0)
        earlier.says("raft-8-s1", item, "nobody", 1.0)
    return earlier


async def test_the_prompt_is_what_the_generator_was_sent_and_the_better_answer_is_chosen(tmp_path: Path, earlier: Earlier) -> None:
    filled(earlier).finish()
    found = await pairs(opened(tmp_path, {"run": "earlier"}))
    assert len(found.pairs) == 10
    assert {prompt_hash([dict(turn) for turn in pair.prompt]) for pair in found.pairs} == {one.prompt_hash for one in earlier.answers}
    assert {(pair.chosen, pair.rejected) for pair in found.pairs} == {(f"mason {item}", "nobody") for item in earlier.items}
    assert found.counts == {"questions": 10, "answers": 20, "pairs": 10, "pairs that can be used": 10}


async def test_only_answers_to_one_prompt_are_paired(tmp_path: Path, earlier: Earlier) -> None:
    for item in earlier.items:
        earlier.says("base", item, "right", 5.0)
        earlier.says("closed", item, "wrong", 1.0, shown=())
        earlier.says("few", item, "wrong too", 1.0, shots=[Shot("q", (), "a")])
        earlier.says("raft-s1", item, "nearly", 3.0)
    earlier.finish()
    found = await pairs(opened(tmp_path, {"run": "earlier"}))
    assert {(pair.chosen, pair.rejected) for pair in found.pairs} == {("right", "nearly")}
    assert found.counts["answers to another prompt"] == 10


async def test_the_largest_gap_of_a_question_is_taken_and_more_where_asked_for(tmp_path: Path, earlier: Earlier) -> None:
    for item in earlier.items:
        for sample, (text, score) in enumerate([("a", 1.0), ("b", 2.0), ("c", 4.0), ("d", None), (None, None), ("a", 1.0)]):
            earlier.says("base", item, text, score, sample=sample)
    earlier.finish()
    found = await pairs(opened(tmp_path, {"run": "earlier"}))
    assert {(pair.chosen, pair.rejected) for pair in found.pairs} == {("c", "a")}
    assert (found.counts["pairs"], found.counts["answers without a score"]) == (10, 20)
    several = await pairs(opened(tmp_path, {"run": "earlier", "pairs_per_item": 2}))
    assert {(pair.chosen, pair.rejected) for pair in several.pairs} == {("c", "a"), ("c", "b")}
    wide = opened(tmp_path, {"run": "earlier", "min_gap": 3.5})
    with pytest.raises(UserError, match=r"2 pairs is asked for, but there are 0 .*10 questions without two answers so far apart"):
        await pairs(wide)


async def test_scores_are_means_over_the_runs_that_gave_one_and_a_cut_answer_is_never_chosen(tmp_path: Path, earlier: Earlier) -> None:
    for item in earlier.items:
        earlier.says("base", item, "longest and best", 5.0, finish="length")
        earlier.says("raft-s1", item, "good", 4.0, None, 5.0)
        earlier.says("raft-s2", item, "bad", 1.0, 3.0)
    earlier.finish()
    found = await pairs(opened(tmp_path, {"run": "earlier"}))
    assert {(pair.chosen, pair.rejected) for pair in found.pairs} == {("good", "bad")}


async def test_arms_are_named_as_contestants_arms_or_families(tmp_path: Path, earlier: Earlier) -> None:
    for item in earlier.items:
        earlier.says("base", item, "base", 5.0)
        earlier.says("base-8", item, "an arm of its own", 4.0)
        for size in (8, 80):
            for seed in (1, 2):
                earlier.says(f"raft-{size}-s{seed}", item, f"raft {size} {seed}", 5.0 - seed - size / 40)
    earlier.finish()

    async def texts(*arms: str) -> set[str]:
        found = await pairs(opened(tmp_path, {"run": "earlier", "arms": list(arms), "min_gap": 0.5, "pairs_per_item": 20}))
        return {text for pair in found.pairs for text in (pair.chosen, pair.rejected)}

    assert await texts("raft-8") == {"raft 8 1", "raft 8 2"}
    assert await texts("raft") == {"raft 8 1", "raft 8 2", "raft 80 1", "raft 80 2"}
    assert await texts("base", "raft-80-s2") == {"base", "raft 80 2"}
    with pytest.raises(UserError, match=r"has no arm 'rift'; there answered base, base-8, raft-8-s1"):
        await texts("rift")


async def test_no_test_question_nor_its_cluster_is_trained_on(tmp_path: Path, earlier: Earlier) -> None:
    """The earlier trial had questions of this one's data, under another split."""
    earlier.finish()
    trial = opened(tmp_path, {"run": "earlier"})
    prepared = await prepare(trial)
    mixed = (*prepared.test, *(item for item in prepared.pool), replace(ITEMS[0], cluster=prepared.test[0].cluster))
    own = Earlier(tmp_path / "earlier", trial.template, mixed)
    filled(own).finish()
    found = await pairs(trial)
    assert {pair.item for pair in found.pairs} == {item.id for item in prepared.pool}
    assert found.counts["pairs on test questions"] == len(prepared.test) + 1


async def test_a_test_question_under_another_name_stops_the_trial_or_is_left_out(tmp_path: Path, earlier: Earlier) -> None:
    earlier.finish()
    trial = opened(tmp_path, {"run": "earlier"})
    asked = (await prepare(trial)).test[0]
    own = Earlier(tmp_path / "earlier", trial.template, (*ITEMS, replace(asked, id="renamed", cluster="elsewhere")))
    filled(own).finish()
    with pytest.raises(LeakageError, match="1 questions stand in two pools"):
        await pairs(trial)
    text = trial.loaded.path.read_text().replace("near_duplicate: 1.0", "near_duplicate: 1.0\n  on_leak: drop")
    trial.loaded.path.write_text(text)
    found = await pairs(open_trial(load(trial.loaded.path), tmp_path / "home", Silent()))
    assert "renamed" not in {pair.item for pair in found.pairs}
    assert found.counts["pairs that repeat a test question"] == 1
    assert [leak.left_item for leak in found.leaks] == [asked.id]


async def test_sizes_are_nested_and_whole_clusters_are_evaluated_on(tmp_path: Path, earlier: Earlier) -> None:
    filled(earlier).finish()
    trial = opened(tmp_path, {"run": "earlier"}, sizes=[10], evaluation=0.4)
    prepared = await preferences(trial, await prepare(trial))
    parts = {size: rows_of(trial, prepared, None, AdapterKey("served", size, 1)) for size in (6, 10)}

    def prompts(rows: list[dict[str, Any]]) -> set[str]:
        return {prompt_hash(row["prompt"]) for row in rows}

    clusters = {one.prompt_hash: earlier.items[one.item].cluster for one in earlier.answers}
    for size, part in parts.items():
        assert len(part.training) + len(part.evaluation) == size
        trained, evaluated = ({clusters[prompt] for prompt in prompts(rows)} for rows in (part.training, part.evaluation))
        assert trained
        assert evaluated
        assert trained.isdisjoint(evaluated)
    assert prompts(parts[6].training) <= prompts(parts[10].training)
    assert prompts(parts[6].evaluation) <= prompts(parts[10].evaluation)


async def test_too_few_pairs_are_an_error_with_counts(tmp_path: Path, earlier: Earlier) -> None:
    filled(earlier).finish()
    with pytest.raises(
        UserError, match=r"training.served: a training set of 11 pairs is asked for, but there are 10 \(10 questions, 20 ans"
    ):
        await pairs(opened(tmp_path, {"run": "earlier"}, sizes=[11]))


async def test_a_run_by_another_template_is_refused(tmp_path: Path, earlier: Earlier) -> None:
    filled(earlier)
    earlier.answers = [replace(answer, prompt_hash="f" * 64) for answer in earlier.answers]
    earlier.finish()
    with pytest.raises(UserError, match=r"none of its 20 answers was given to a prompt of plain/v1, by which this trial asks"):
        await pairs(opened(tmp_path, {"run": "earlier"}))


async def test_what_is_no_run_and_what_was_not_judged_is_said(tmp_path: Path, earlier: Earlier) -> None:
    async def said(**more: Any) -> str:
        found, _ = await findings(opened(tmp_path, {"run": "earlier", **more}), contact=False)
        (one,) = (one for one in found if one.where.startswith("training.served.preferences"))
        return one.problem

    assert "there is no such folder" in await said()
    filled(earlier).finish()
    assert "was not judged on 'completeness'; its criteria are accuracy" in await said(criterion="completeness")
    (earlier.folder / "passages.parquet").unlink()
    assert "holds no passages.parquet: it was written by an older version" in await said()
    (earlier.folder / "outcome.json").unlink()
    assert "is no finished run" in await said()


async def test_the_key_of_a_trial_follows_what_the_run_and_the_file_hold(tmp_path: Path, earlier: Earlier) -> None:
    filled(earlier).finish()
    before = opened(tmp_path, {"run": "earlier"}).run_key()
    earlier.judgements = [replace(one, score=2.0) for one in earlier.judgements]
    earlier.finish()
    assert opened(tmp_path, {"run": "earlier"}).run_key() != before
    (tmp_path / "rows.jsonl").write_text("{}\n")
    named = opened(tmp_path, {"file": "rows.jsonl"}).run_key()
    (tmp_path / "rows.jsonl").write_text("{} \n")
    assert opened(tmp_path, {"file": "rows.jsonl"}).run_key() != named


def rows(folder: Path, *found: Any) -> Path:
    (folder / "rows.jsonl").write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in found))
    return folder / "rows.jsonl"


async def test_a_file_brings_texts_messages_and_conversations(tmp_path: Path) -> None:
    user, good, bad = {"role": "user", "content": "hello?"}, {"role": "assistant", "content": "hi"}, {"role": "assistant", "content": "no"}
    rows(
        tmp_path,
        {"prompt": "hello?", "chosen": "hi", "rejected": "no", "id": 7},
        {"prompt": [user], "chosen": [good], "rejected": "never"},
        {"chosen": [user, good, user, good], "rejected": [user, good, user, bad], "system": "Be kind."},
        {"prompt": "hello?", "chosen": "hi", "rejected": "no"},
    )
    found = await pairs(opened(tmp_path, {"file": "rows.jsonl"}))
    told = sorted((len(pair.row()["prompt"]), pair.chosen, pair.rejected) for pair in found.pairs)
    assert told == [(1, "hi", "never"), (1, "hi", "no"), (4, "hi", "no")]
    assert next(pair for pair in found.pairs if len(pair.prompt) == 4).row()["prompt"][0] == {"role": "system", "content": "Be kind."}
    assert len({pair.cluster for pair in found.pairs if len(pair.prompt) == 1}) == 1, "pairs of one prompt stay together"


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"prompt": "p", "chosen": "a"', "broken JSON: the row ends too early"),
        ("[1]", "the row is a list, expected an object"),
        ({"messages": []}, "no `chosen`: a row has prompt, chosen and rejected"),
        ({"prompt": "p", "chosen": "a"}, "no `rejected`"),
        ({"chosen": "a", "rejected": "b"}, "no `prompt`"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "are the same: nothing is preferred"),
        ({"prompt": "p", "chosen": 1, "rejected": "a"}, "`chosen` is neither a text nor a list of messages"),
        ({"prompt": [{"role": "assistant", "content": "x"}], "chosen": "a", "rejected": "b"}, "must be the user's"),
        ({"prompt": [{"role": "robot", "content": "x"}], "chosen": "a", "rejected": "b"}, "message 0 of `prompt` has role 'robot'"),
        ({"prompt": "p", "chosen": "\ud83d", "rejected": "b"}, "holds half a character"),
    ],
)
async def test_a_row_that_is_no_preference_is_refused_with_file_line_and_reason(tmp_path: Path, row: Any, why: str) -> None:
    path = rows(tmp_path, {"prompt": "p", "chosen": "a", "rejected": "b"}, row)
    with pytest.raises(DataError) as refused:
        await pairs(opened(tmp_path, {"file": "rows.jsonl"}))
    (bad,) = refused.value.bad_rows
    assert (bad.file, bad.line) == (str(path), 2)
    assert why in bad.reason


async def test_a_test_question_inside_a_prompt_of_a_file_is_a_leak(tmp_path: Path) -> None:
    trial = opened(tmp_path, {"file": "rows.jsonl"}, sizes=[1])
    rows(tmp_path, {"prompt": "p", "chosen": "a", "rejected": "b"})
    asked = (await prepare(trial)).test[0]
    prompt = f"Read this.\n\n[1] A passage.\n\nQuestion: {asked.question.upper()}"
    rows(tmp_path, {"prompt": "Something else?", "chosen": "a", "rejected": "b"}, {"prompt": prompt, "chosen": "x", "rejected": "y"})
    with pytest.raises(LeakageError) as refused:
        await pairs(opened(tmp_path, {"file": "rows.jsonl"}, sizes=[1]))
    assert [leak.left_item for leak in refused.value.leaks] == [asked.id]


async def test_a_test_question_in_other_words_is_a_leak_where_the_chosen_answer_holds_its_answer(tmp_path: Path) -> None:
    trial = opened(tmp_path, {"file": "rows.jsonl"}, sizes=[1])
    rows(tmp_path, {"prompt": "p", "chosen": "a", "rejected": "b"})
    asked = (await prepare(trial)).test[0]
    reworded, answer = f"Please, {asked.question.lower()} today", f"It is {asked.references[0]}, as far as one knows."
    rows(tmp_path, {"prompt": "Something else?", "chosen": "a", "rejected": "b"}, {"prompt": reworded, "chosen": answer, "rejected": "y"})
    with pytest.raises(LeakageError) as refused:
        await pairs(opened(tmp_path, {"file": "rows.jsonl"}, sizes=[1]))
    assert [leak.left_item for leak in refused.value.leaks] == [asked.id]


def test_the_recipe_is_the_contract_s(tmp_path: Path) -> None:
    given = TrainingSpec(model="m", method="dpo", preferences={"file": "x"}, sizes=(4,), beta=0.3, lora={"rank": 4}, epochs=2)
    dpo = _method(given)["dpo"]
    assert (dpo.beta, dpo.lora.rank, dpo.optimization.epochs) == (0.3, 4, 2.0)
    assert not _method(given.model_copy(update={"beta": None}))["dpo"].HasField("beta")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "dpo"}, "method dpo learns from pairs of answers: give preferences, with file or run"),
        ({"method": "dpo", "preferences": {}}, "give either file or run"),
        ({"method": "dpo", "preferences": {"file": "x", "run": "y"}}, "give either file or run"),
        ({"method": "dpo", "preferences": {"file": "x", "min_gap": 2.0}}, "min_gap goes with run; with a file leave it out"),
        ({"method": "dpo", "preferences": {"file": "x"}, "context": "gold"}, "context does not go with method dpo"),
        ({"preferences": {"file": "x"}, "beta": 0.1}, "beta, preferences does not go with method sft"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TrainingSpec(model="m", sizes=(4,), **given)
    assert said in str(refused.value)
