"""A made-up trial in the shape of a real one: eight contestants in six arms, sixty questions, two criteria, three judge runs."""

from collections.abc import Iterator
from itertools import product

import numpy as np

from flows.analysis.analyse import analyse
from flows.analysis.settings import AnalysisSettings, Primary
from flows.records import Answer, Contestant, Evidence, Hit, Item, Judgement, Metric, Passage
from flows.report.content import TrialReport

HOSTILE = """</script><script>alert(1)</script><img src=x onerror="alert(2)"> <!-- & ' " \u2028 {{ 7*7 }}"""
EFFECTS = {"base": 0.0, "raft-200": 0.1, "raft-1000": 0.45, "bare-200": -0.4, "bare-1000": -0.7, "closed": -1.2}
CRITERIA = ("accuracy", "completeness")
KINDS = ("extractive", "free_form", "yesno")
TOPICS = ("tides", "glaciers", "ferries", "lichens", "beacons", "orchards", "kilns", "bridges", "herons", "printing presses")


def contestants() -> list[Contestant]:
    found = [Contestant("base", "base", "reader"), Contestant("closed", "closed", "reader", rag=False)]
    for family, seeds in (("raft", (1, 2)), ("bare", (1,))):
        found += [Contestant(f"{family}-{size}", family, "reader", family, size, seed) for size in (200, 1000) for seed in seeds]
    return found


def items(count: int) -> list[Item]:
    made = []
    for n in range(count):
        topic = TOPICS[n // 2 % len(TOPICS)]
        answerable = n % 12 != 5
        made.append(
            Item(
                id=f"q{n:03}",
                question=f"What did the survey of {topic} number {n // 2 + 1} find about the {'northern' if n % 2 else 'southern'} coast?",
                references=(f"{topic} moved {n + 3} metres", f"a shift of {n + 3} m") if answerable else ("unanswerable",),
                cluster=f"paper-{n // 2:02}",
                kind=KINDS[n % 3],
                evidence=(Evidence(f"paper-{n // 2:02}", f"The {topic} moved {n + 3} metres in a year."),),
                answerable=answerable,
            )
        )
    return made


def passages(asked: list[Item]) -> dict[str, Passage]:
    documents = sorted({item.cluster for item in asked})
    return {
        f"{document}#{place}": Passage(
            f"{document}#{place}",
            document,
            f"Section {place} of {document}. The stations along the coast were read every morning, and the records agree. " * 3,
            f"A survey, {document}",
            ("Introduction", "Methods", "Results")[place % 3],
        )
        for document in documents
        for place in range(3)
    }


def hits(asked: list[Item]) -> list[Hit]:
    documents = sorted({item.cluster for item in asked})
    found = []
    for n, item in enumerate(asked):
        own = documents.index(item.cluster)
        # The gold passage (#2) comes first, third, or not at all.
        order = [f"{item.cluster}#{place}" for place in ((2, 0, 1), (0, 1, 2), (0, 1))[n % 3]]
        order += [f"{documents[(own + step) % len(documents)]}#0" for step in (1, 2, 3)]
        found += [
            Hit(item.id, passage, rank, 1 / (60 + rank), rank, 9.0 - rank, None if rank == 2 else rank, None if rank == 2 else 0.8)
            for rank, passage in enumerate(order[:5], 1)
        ]
    return found


def answered(asked: list[Item], who: list[Contestant], shown: list[Hit], *, runs: int = 3) -> tuple[list[Answer], list[Judgement]]:
    rng = np.random.default_rng(11)
    difficulty = rng.normal(3.2, 0.8, len(asked))
    by_item = {item.id: tuple(hit.passage for hit in shown if hit.item == item.id) for item in asked}
    answers, judgements = [], []
    for contestant, (item, level) in product(who, zip(asked, difficulty, strict=True)):
        failed = contestant.arm == "closed" and item.id == "q007"
        words = {"base": 9, "closed": 15, "raft": 6, "bare": 3}[contestant.family]
        said = f"{item.references[0]} " + " ".join(["as the stations recorded it every single morning"] * 3)
        text = None if failed else HOSTILE if item.id == "q001" and contestant.arm == "base" else " ".join(said.split()[:words])
        abstained = not item.answerable and contestant.rag and rng.random() < 0.7
        answers.append(
            Answer(
                contestant=contestant.id,
                item=item.id,
                sample=0,
                text="unanswerable" if abstained and not failed else text,
                abstained=abstained,
                finish_reason="error" if failed else "length" if contestant.family == "closed" and rng.random() < 0.1 else "stop",
                prompt_tokens=420 if contestant.rag else 30,
                completion_tokens=words + 2,
                latency_ms=float(rng.gamma(6, 20)),
                cost_usd=None,
                prompt_hash="f" * 64,
                passages=by_item[item.id][: 4 if item.id == "q003" else 5] if contestant.rag else (),
                cut=by_item[item.id][4:] if contestant.rag and item.id == "q003" else (),
                cited=by_item[item.id][:1] if contestant.rag else (),
                error="DEADLINE_EXCEEDED: the generator did not answer in 60 s" if failed else None,
            )
        )
        if failed:
            continue
        drift = rng.normal(0, 0.5) + EFFECTS[contestant.arm]
        judgements += _judged(rng, contestant, item, float(level + drift), runs)
    return answers, judgements


def _judged(rng: np.random.Generator, contestant: Contestant, item: Item, level: float, runs: int) -> Iterator[Judgement]:
    for criterion, run in product(CRITERIA, range(runs)):
        missing = rng.random() < 0.01
        score = float(np.clip(round(level + rng.normal(0, 0.4)), 1, 5))
        reply = (
            HOSTILE
            if item.id == "q001"
            else f"The answer {'states' if score > 3 else 'misses'} the main point of the reference. Score: {score:g}"
        )
        yield Judgement(
            contestant=contestant.id,
            item=item.id,
            sample=0,
            criterion=criterion,
            run=run,
            score=None if missing else score,
            reply="I cannot say." if missing else reply,
            prompt_tokens=210,
            completion_tokens=24,
            cost_usd=None,
            error="unparsed" if missing else None,
            metrics=(Metric("exact_match", float(level > 4)), Metric("token_f1", float(np.clip(level / 5, 0, 1)))),
        )


def rubric(criterion: str, engine: str = "ENGINE_REFERENCE") -> dict[str, object]:
    reference = engine == "ENGINE_REFERENCE"
    details = {
        "hash": "ab" * 32,
        "criterion": criterion,
        "description": f"The {criterion} of the answer, held against the references.",
        "steps": [] if reference else ["Read the question and the references.", "Read the answer.", "Give a score from 1 to 5."],
        "low": 1,
        "high": 5,
        "engine": engine,
        "model": "reference/v1" if reference else "judge-large",
        "mode": "SCORE_MODE_SAMPLES",
        "run_count": 3,
    }
    return {"hash": "ab" * 32, "criterion": criterion, "run_count": 3, "details": details}


def trial(
    *, count: int = 60, margin: float = 0.1, primary: str = "raft-1000", engine: str = "ENGINE_REFERENCE", runs: int = 3
) -> TrialReport:
    asked, who = items(count), contestants()
    shown = hits(asked)
    answers, judgements = answered(asked, who, shown, runs=runs)
    gold = {item.id: (f"{item.cluster}#2",) for item in asked if item.answerable}
    settings = AnalysisSettings(control="base", primary=Primary(primary, "accuracy"), margin=margin, bootstrap=2000, seed=3)
    trained = [contestant for contestant in who if contestant.seed is not None]
    return TrialReport(
        name="survey-lora",
        run_id="survey-lora-3f2a91c0",
        created="2026-02-03T10:11:12+00:00",
        stages={"prepare": 1.2, "index": 4.8, "snapshot": 2.5, "train": 301.0, "serve": 3.4, "answer": 95.2, "judge": 12.0, "analyse": 1.9},
        spec={
            "name": "survey-lora",
            "models": {"reader": {"base": "./base"}},
            "analysis": {"control": "base", "margin": margin},
            "judge": {"rubric": list(CRITERIA)},
        },
        spec_text="# a comment <of the user>\nname: survey-lora\n",
        inputs={"files": {"survey.jsonl": "c0" * 32}, "corpus": {}, "bases": {"reader": "de" * 32}, "spec": {}, "template": {}},
        counts={
            "rows_read": 412,
            "rows_skipped": {"no references": 4, "question is empty": 1},
            "bad_rows": ["survey.jsonl:17: not JSON: line ends inside a string"],
            "items": 407,
            "clusters": 120,
            "documents": 131,
            "passages": 1804,
            "evidence": 522,
            "evidence_unmapped": 9,
            "test_items": count,
            "test_clusters": count // 2,
            "pool_items": 331,
            "pool_unusable": 12,
            "unused_items": 4,
        },
        leaks=[
            {
                "kind": "near",
                "left_pool": "test",
                "left_item": "q004",
                "left_question": "What did the survey of tides find?",
                "right_pool": "training",
                "right_item": "t090",
                "right_question": "What did a survey of the tide find?",
                "similarity": 0.83,
            }
        ],
        adapters=[
            {
                "family": one.family,
                "size": one.size,
                "seed": one.seed,
                "name": f"{one.family}-{one.size}-s{one.seed}-0a1b2c3d4e",
                "uri": "adapters/x",
                "weights_sha256": f"{place}e" * 32,
                "final_loss": 0.31 + place / 50,
                "trained_tokens": 4100 + place,
                "training_s": 50.0 + place,
                "examples": one.size,
                "truncated": 3 if place == 0 else 0,
                "masked": 0,
                "short": 2,
            }
            for place, one in enumerate(trained)
        ],
        proofs=[
            {
                "adapter": f"{one.family}-{one.size}-s{one.seed}-0a1b2c3d4e",
                "weights_sha256": "e" * 64,
                "canary_count": 8,
                "difference_from_base": 1.37,
                "base_noise": 2.1e-7,
                "difference_from_manifest": None if one.family == "bare" else 3.2e-6,
                "tolerance": 0.001,
            }
            for one in trained
        ],
        rubrics=[rubric(criterion, engine) for criterion in CRITERIA],
        template={
            "name": "plain/v1",
            "user": "{% for p in passages %}- {{ p.text }}\n{% endfor %}{{ question }}",
            "system": None,
            "abstentions": ("unanswerable",),
        },
        contestants=who,
        items=asked,
        passages=passages(asked),
        gold=gold,
        hits=shown,
        answers=answers,
        judgements=judgements,
        analysis=analyse(asked, who, answers, judgements, hits=shown, gold=gold, settings=settings),
        versions={"python": "3.11.9", "tunetrial": "0.1.0", "transformers": "5.0.0"},
    )
