"""A judge with a planted bias: its own contrast is wrong, and labels of some clusters bring the truth back."""

from collections.abc import Iterable, Mapping

import numpy as np
import pytest

from flows.analysis.calibration import Calibration, calibrate
from flows.analysis.human_scores import HumanScore
from flows.analysis.settings import AnalysisSettings, Primary
from flows.analysis.verdict import Verdict
from flows.records import Contestant, Item, Judgement

SETTINGS = AnalysisSettings(control="base", primary=Primary("raft", "accuracy"), margin=0.1, bootstrap=1000, seed=1)
TRUTH = {"base": 0.0, "raft": -0.3, "bare": -0.6}
BIAS = {"base": 0.0, "raft": 0.6, "bare": 0.1}
"""The judge likes what raft writes: by its scores raft is better by 0.3, to people it is worse by 0.3."""


class Trial:
    """Answers of three arms to questions in clusters of two, people's scores of all of them, and a judge's two runs."""

    def __init__(self, seed: int, clusters: int = 120, seeds: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        self.items = [Item(f"q{n:04}", "Why?", ("so",), f"doc{n // 2:03}") for n in range(2 * clusters)]
        trained = seeds or {}
        self.contestants = [
            Contestant(arm, arm, "small", None if seed is None else arm, seed=seed) for arm in TRUTH for seed in trained.get(arm, (None,))
        ]
        shared = self.rng.normal(0, 0.4, clusters)
        level = 3.2 + np.repeat(shared, 2) + self.rng.normal(0, 0.6, len(self.items))
        self.people: dict[tuple[str, str], float] = {}
        self.judgements: list[Judgement] = []
        for contestant in self.contestants:
            for item, expected in zip(self.items, level, strict=True):
                true = expected + TRUTH[contestant.arm] + self.rng.normal(0, 0.5)
                self.people[contestant.id, item.id] = float(np.clip(np.round(true * 2) / 2, 1, 5))
                for run in range(2):
                    score = true + BIAS[contestant.arm] + self.rng.normal(0, 0.4)
                    self.judgements.append(self._judgement(contestant.id, item.id, run, float(np.clip(score, 1, 5))))

    @staticmethod
    def _judgement(contestant: str, item: str, run: int, score: float | None) -> Judgement:
        return Judgement(contestant, item, 0, "accuracy", run, score, "", 1, 1, None, None if score is not None else "unparsed")

    def labels(self, clusters: int, contestants: Iterable[str] | None = None) -> list[HumanScore]:
        """One person's labels of all answers in some clusters, drawn evenly."""
        drawn = set(self.rng.choice(sorted({item.cluster for item in self.items}), clusters, replace=False))
        of = {item.id: item.cluster for item in self.items}
        wanted = set(contestants) if contestants is not None else {contestant.id for contestant in self.contestants}
        return [
            HumanScore(contestant, item, 0, "accuracy", {"ann": score})
            for (contestant, item), score in self.people.items()
            if of[item] in drawn and contestant in wanted
        ]

    def calibrated(self, labels: list[HumanScore], good_from: float | None = None, settings: AnalysisSettings = SETTINGS) -> Calibration:
        scales = {"accuracy": (1, 5), "tone": (0, 1)}
        return calibrate(self.items, self.contestants, self.judgements, labels, settings=settings, scales=scales, good_from=good_from)


def test_the_judges_verdict_is_wrong_and_the_corrected_one_right() -> None:
    trial = Trial(1)
    found = trial.calibrated(trial.labels(40))
    primary = found.primary
    assert primary is not None
    judged, corrected = primary.judged, primary.corrected
    assert judged.verdict is Verdict.BETTER
    assert judged.interval is not None
    assert judged.interval.low > TRUTH["raft"]
    assert primary.verdict is Verdict.WORSE
    assert corrected.interval is not None
    assert corrected.interval.low <= TRUTH["raft"] <= corrected.interval.high
    assert primary.bias.interval is not None
    assert primary.bias.interval.low <= BIAS["raft"] <= primary.bias.interval.high
    people = primary.people.interval
    assert people is not None
    assert corrected.interval.high - corrected.interval.low < people.high - people.low
    assert primary.sentence.startswith("raft is WORSE than base on accuracy: -0.")
    assert primary.sentence.endswith("as people score, from 80 labelled pairs")


def test_over_many_trials_the_corrected_interval_holds_the_truth_and_the_judges_never_does() -> None:
    corrected = judged = wrong = 0
    for seed in range(40):
        trial = Trial(100 + seed, clusters=60)
        primary = trial.calibrated(trial.labels(25, ["base", "raft"])).primary
        assert primary is not None
        assert primary.corrected.interval is not None
        assert primary.judged.interval is not None
        corrected += primary.corrected.interval.low <= TRUTH["raft"] <= primary.corrected.interval.high
        judged += primary.judged.interval.low <= TRUTH["raft"] <= primary.judged.interval.high
        wrong += primary.verdict in (Verdict.BETTER, Verdict.NON_INFERIOR)
    # 95 % of 40 is 38, with a standard deviation of 1.4; three of them.
    assert corrected >= 34
    assert judged == 0
    # Falsely above -margin is below 2.5 %, 1 of 40, with a standard deviation of 1.
    assert wrong <= 4


def test_every_labelled_arm_has_its_bias_and_its_corrected_mean() -> None:
    trial = Trial(2)
    (criterion,) = trial.calibrated(trial.labels(40)).criteria
    assert [arm.arm for arm in criterion.arms] == ["base", "raft", "bare"]
    for arm in criterion.arms:
        true = np.mean([score for (contestant, _), score in trial.people.items() if contestant == arm.arm])
        assert arm.answers == 80
        assert arm.bias.value == pytest.approx(BIAS[arm.arm], abs=0.12)
        assert arm.corrected.interval is not None
        assert arm.corrected.interval.low <= true <= arm.corrected.interval.high
    assert criterion.agreement.answers == 240
    assert criterion.agreement.clusters == 40
    assert [(one.arm, one.primary) for one in criterion.contrasts] == [("raft", True), ("bare", False)]
    assert criterion.contrasts[1].verdict is Verdict.WORSE


def test_the_order_of_labels_changes_nothing() -> None:
    trial = Trial(3)
    labels = trial.labels(30)
    shuffled = [labels[place] for place in np.random.default_rng(0).permutation(len(labels))]
    assert trial.calibrated(shuffled, good_from=3) == trial.calibrated(labels, good_from=3)


def test_labels_of_one_arm_give_its_bias_and_no_contrast() -> None:
    trial = Trial(4)
    found = trial.calibrated(trial.labels(30, ["raft"]))
    assert found.primary is None
    assert found.criteria[0].contrasts == ()
    assert [arm.arm for arm in found.criteria[0].arms] == ["raft"]
    assert "no question has labels of both raft and base on accuracy" in found.notes[0]


def test_what_lacks_a_partner_or_the_judges_score_is_counted() -> None:
    trial = Trial(5)
    labels = trial.labels(30)
    gone = next(label for label in labels if label.contestant == "base")
    labels.remove(gone)
    unjudged = next(label for label in labels if label.contestant == "bare")
    trial.judgements = [one for one in trial.judgements if (one.contestant, one.item) != (unjudged.contestant, unjudged.item)]
    found = trial.calibrated(labels)
    assert found.primary is not None
    assert found.primary.corrected.labelled == 59
    assert "items left out because only one of the two arms is labelled: 1" in found.primary.notes
    assert "labelled answers left out because the judge gave them no score: 1" in found.notes
    bare = next(arm for arm in found.criteria[0].arms if arm.arm == "bare")
    assert (bare.answers, bare.unjudged) == (59, 1)


def test_labels_of_one_training_of_three_are_used_and_said() -> None:
    trial = Trial(6, seeds={"raft": (1, 2, 3)})
    found = trial.calibrated(trial.labels(40, ["base", "raft-s1"])).primary
    assert found is not None
    assert "no labels of raft-s2, raft-s3: the judge's error is taken to be that of the other trainings of raft" in found.notes
    assert found.corrected.interval is not None
    assert found.corrected.interval.low <= TRUTH["raft"] <= found.corrected.interval.high
    assert found.judged.arm_seeds == 3


def test_several_people_are_averaged_and_compared() -> None:
    trial = Trial(7)
    both = [
        HumanScore(one.contestant, one.item, 0, "accuracy", {"ann": one.mean, "bob": min(5.0, one.mean + 0.5)}) for one in trial.labels(30)
    ]
    (criterion,) = trial.calibrated(both).criteria
    assert (criterion.annotators.people, criterion.annotators.answers) == (2, 180)
    assert criterion.annotators.alpha.value is not None
    assert 0.8 < criterion.annotators.alpha.value < 1
    base = criterion.arms[0]
    assert base.people.value == pytest.approx(np.mean([one.mean for one in both if one.contestant == "base"]))


def test_unlike_chances_are_weighed() -> None:
    trial = Trial(8, clusters=200)
    labels = []
    for item in trial.items:
        # Questions that raft answers badly to people are four times as likely to be drawn.
        chance = 0.6 if trial.people["raft", item.id] < 3 else 0.15
        if trial.rng.random() < chance:
            labels += [HumanScore(arm, item.id, 0, "accuracy", {"ann": trial.people[arm, item.id]}, chance) for arm in ("base", "raft")]
    found = trial.calibrated(labels)
    assert found.primary is not None
    assert found.primary.corrected.interval is not None
    assert found.primary.corrected.interval.low <= TRUTH["raft"] <= found.primary.corrected.interval.high
    assert any("unlike chances" in note for note in found.notes)
    even = [HumanScore(one.contestant, one.item, 0, one.criterion, one.scores) for one in labels]
    unweighed = trial.calibrated(even).criteria[0].arms[1].corrected
    weighed = found.criteria[0].arms[1].corrected
    true = np.mean([score for (contestant, _), score in trial.people.items() if contestant == "raft"])
    assert unweighed.interval is not None
    assert unweighed.interval.high < true
    assert weighed.interval is not None
    assert weighed.interval.low <= true <= weighed.interval.high


def test_shares_of_good_answers_are_corrected_where_a_score_is_named() -> None:
    trial = Trial(9)
    labels = trial.labels(60)
    assert trial.calibrated(labels).criteria[0].shares == ()
    (criterion,) = trial.calibrated(labels, good_from=3.5).criteria
    base, raft, _ = criterion.shares
    true = {arm: np.mean([trial.people[arm, item.id] >= 3.5 for item in trial.items]) for arm in TRUTH}
    assert raft.apparent is not None
    assert raft.apparent > true["raft"] + 0.1
    for share, arm in ((base, "base"), (raft, "raft")):
        assert share.corrected.interval is not None
        assert share.corrected.interval.low <= true[arm] <= share.corrected.interval.high
    assert base.difference is None
    assert raft.difference is not None
    assert raft.difference.interval is not None
    assert raft.difference.interval.low <= true["raft"] - true["base"] <= raft.difference.interval.high


def test_a_criterion_of_yes_and_no_has_shares_without_asking() -> None:
    trial = Trial(10)
    said = [
        Judgement(one.contestant, one.item, 0, "tone", one.run, float((one.score or 0) > 3), "", 1, 1, None)
        for one in trial.judgements
        if one.run == 0
    ]
    trial.judgements += said
    labels = [HumanScore(one.contestant, one.item, 0, "tone", {"ann": float(one.mean > 3)}) for one in trial.labels(40)]
    (criterion,) = trial.calibrated(labels).criteria
    assert (criterion.criterion, criterion.good_from) == ("tone", 1.0)
    assert [share.arm for share in criterion.shares] == ["base", "raft", "bare"]
    assert criterion.agreement.confusion.categories == (0, 1)


def test_labels_of_another_run_are_refused() -> None:
    trial = Trial(11)
    with pytest.raises(ValueError, match="a label names item 'q9999' and contestant 'rafft', which the run does not have"):
        trial.calibrated([HumanScore("rafft", "q9999", 0, "accuracy", {"ann": 3.0})])


def test_few_clusters_are_inconclusive_with_a_reason() -> None:
    trial = Trial(12)
    found = trial.calibrated(trial.labels(5)).primary
    assert found is not None
    assert (found.verdict, found.corrected.interval) == (Verdict.INCONCLUSIVE, None)
    assert "no interval: labels of both arms are of 5 clusters, 6 are needed at this level" in found.notes
