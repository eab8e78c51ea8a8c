"""Layers of variance: against mixed models and textbook mean squares, on planted truth, and as standard errors of designs."""

import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # pandas ships no type information
import pytest
import statsmodels.formula.api as smf  # type: ignore[import-untyped]  # statsmodels ships no type information

from flows.analysis.clustered import between_seed_variance
from flows.analysis.layers import ArmVariances, Components, Design, components, doubled, seed_means, variances_of_mean
from flows.analysis.paired import over_seeds, paired_statistic
from tests.unit.analysis.planted import SDS, arm_scores, as_scores, two_arms


def found_in(arm: np.ndarray, control: np.ndarray, clusters: np.ndarray) -> Components:
    found = components(as_scores(arm), as_scores(control), clusters, int(clusters.max()) + 1)
    assert found is not None
    return found


def nested(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One seed, two samples and three runs of ten clusters with four items each, all layers well above 0."""
    clusters = np.repeat(np.arange(10), 4)
    base = rng.normal(0, 1, 10)[clusters] + rng.normal(0, 1, 40)
    return arm_scores(rng, base, (1, 2, 3), SDS | {"sample": 0.7}, trained=False), clusters


def test_nested_layers_are_those_of_a_mixed_model() -> None:
    arm, clusters = nested(np.random.default_rng(3))
    found = found_in(arm, np.zeros((1, 40, 1, 1)), clusters)
    _, item, sample, _ = np.indices(arm.shape)
    table = pd.DataFrame({"y": arm.ravel(), "item": item.ravel(), "sample": sample.ravel(), "cluster": clusters[item].ravel()})
    table["answer"] = table["item"] * 2 + table["sample"]
    model = smf.mixedlm("y ~ 1", table, groups="cluster", re_formula="1", vc_formula={"item": "0 + C(item)", "answer": "0 + C(answer)"})
    fitted = model.fit(reml=True)
    by_name = dict(zip(model.exog_vc.names, fitted.vcomp, strict=True))
    assert found.truncated == ()
    assert found.cluster == pytest.approx(float(fitted.cov_re.iloc[0, 0]), rel=0.01)
    assert found.item == pytest.approx(by_name["item"], rel=0.01)
    assert found.arm.sample == pytest.approx(by_name["answer"], rel=0.01)
    assert found.arm.run == pytest.approx(float(fitted.scale), rel=0.01)


def test_nested_layers_are_the_mean_squares_of_the_textbook() -> None:
    arm, clusters = nested(np.random.default_rng(4))
    found = found_in(arm, np.zeros((1, 40, 1, 1)), clusters)
    values = arm[0]
    answers, items = values.mean(axis=2), values.mean(axis=(1, 2))
    groups = items.reshape(10, 4).mean(axis=1)
    runs = ((values - answers[:, :, None]) ** 2).sum() / (40 * 2 * 2)
    samples = 3 * ((answers - items[:, None]) ** 2).sum() / 40
    within = 6 * ((items - groups[clusters]) ** 2).sum() / 30
    between = 24 * ((groups - groups.mean()) ** 2).sum() / 9
    expected = ((between - within) / 24, (within - samples) / 6, (samples - runs) / 3, runs)
    assert (found.cluster, found.item, found.arm.sample, found.arm.run) == pytest.approx(expected)


def test_crossed_seeds_are_the_mean_squares_of_the_textbook() -> None:
    rng = np.random.default_rng(5)
    arm = arm_scores(rng, rng.normal(0, 1, 30), (4, 1, 1), SDS, trained=True)
    found = found_in(arm, np.zeros((1, 30, 1, 1)), np.arange(30))
    values = arm[:, :, 0, 0]
    rest = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    residual = (rest**2).sum() / (3 * 29)
    seeds = 30 * ((values.mean(axis=1) - values.mean()) ** 2).sum() / 3
    assert (found.arm.seed, found.arm.seed_item) == pytest.approx(((seeds - residual) / 30, residual))


def test_seeds_over_uneven_clusters_are_those_of_the_trial() -> None:
    rng = np.random.default_rng(6)
    clusters = np.repeat(np.arange(20), rng.integers(1, 6, 20))
    arm, control = two_arms(rng, clusters, (3, 1, 1), (1, 1, 1), SDS | {"seed": 0.5})
    found = found_in(arm, control, clusters)
    assert found.arm.seed == pytest.approx(between_seed_variance(arm[:, :, 0, 0], clusters, 20))


def test_planted_layers_come_out_without_bias_from_uneven_data_with_gaps() -> None:
    rng, found = np.random.default_rng(7), []
    for _ in range(200):
        clusters = np.repeat(np.arange(40), rng.integers(1, 6, 40))
        arm, control = two_arms(rng, clusters, (3, 3, 2), (1, 3, 2), SDS)
        kept = [as_scores(values, rng.random(values.shape) < 0.85) for values in (arm, control)]
        one = components(*kept, clusters, 40)
        assert one is not None
        layers = (one.cluster, one.item, one.arm.seed, one.arm.seed_item, one.arm.sample, one.arm.run, one.control.sample, one.control.run)
        found.append([np.nan if value is None else value for value in layers])
    table = np.array(found)
    truth = [SDS[name] ** 2 for name in ("cluster", "item", "seed", "seed_item", "sample", "run", "sample", "run")]
    apart = (table.mean(axis=0) - truth) / (table.std(axis=0, ddof=1) / len(table) ** 0.5)
    # Cutting at 0 lifts the cluster's and the seed's mean a little; the bound is four standard errors.
    assert np.abs(apart).max() < 4


def test_an_estimate_below_zero_stands_as_zero_and_is_named() -> None:
    clusters = np.repeat(np.arange(10), 2)
    alternating = np.tile([-1.0, 1.0], 10)[None, :, None, None] + np.random.default_rng(8).normal(0, 0.01, (1, 20, 1, 1))
    found = found_in(alternating, np.zeros((1, 20, 1, 1)), clusters)
    assert (found.cluster, found.truncated) == (0.0, ("cluster",))
    assert found.item > 1


def test_layers_that_were_not_repeated_are_unknown_and_counted_above() -> None:
    rng = np.random.default_rng(9)
    arm, control = two_arms(rng, np.arange(4000), (1, 1, 1), (1, 1, 1), SDS)
    found = found_in(arm, control, np.arange(4000))
    assert (found.cluster, found.arm, found.control) == (None, ArmVariances(), ArmVariances())
    both = 2 * (SDS["sample"] ** 2 + SDS["run"] ** 2)
    assert found.item == pytest.approx(SDS["cluster"] ** 2 + SDS["item"] ** 2 + SDS["seed_item"] ** 2 + both, rel=0.1)


def test_no_two_clusters_with_pairs_have_no_layers() -> None:
    one = as_scores(np.ones((1, 3, 1, 1)))
    assert components(one, one, np.zeros(3, dtype=np.intp), 1) is None


def test_even_clusters_give_back_the_standard_error_of_the_trial() -> None:
    rng = np.random.default_rng(10)
    clusters = np.repeat(np.arange(15), 3)
    arm, control = two_arms(rng, clusters, (1, 2, 2), (1, 2, 2), SDS | {"item": 1.0})
    found = found_in(arm, control, clusters)
    assert found.truncated == ()
    total = sum(variances_of_mean(found, Design(45, 15, samples=2, runs=2)).values())
    statistic = paired_statistic(*(seed_means(as_scores(values)) for values in (arm, control)), clusters, 15)
    assert total**0.5 == pytest.approx(statistic.standard_error)


def test_the_standard_error_of_a_design_is_the_spread_of_simulated_trials() -> None:
    rng, means = np.random.default_rng(11), []
    sizes = np.array([1, 2, 3, 6] * 5)
    clusters = np.repeat(np.arange(20), sizes)
    for _ in range(2000):
        arm, control = two_arms(rng, clusters, (3, 2, 2), (1, 2, 2), SDS)
        means.append(arm.mean() - control.mean())
    variances = {name: sd**2 for name, sd in SDS.items()}
    arm_part = ArmVariances(*(variances[name] for name in ("seed", "seed_item", "sample", "run")))
    truth = Components(variances["cluster"], variances["item"], arm_part, ArmVariances(sample=arm_part.sample, run=arm_part.run))
    design = Design(60, 20, samples=2, runs=2, arm_seeds=3, unevenness=float(20 * (sizes**2).sum() / 60**2))
    # A variance of 2000 draws has a relative standard error of 3.2 %.
    assert np.var(means, ddof=1) == pytest.approx(sum(variances_of_mean(truth, design).values()), rel=0.11)


def test_scores_are_averaged_as_the_trial_does() -> None:
    values = np.array([[[[1.0, 2.0], [5.0, 5.0]], [[3.0, 3.0], [4.0, 4.0]]]])
    kept = np.ones(values.shape, dtype=bool)
    kept[0, 0, 0, 1] = False
    kept[0, 1] = False
    means = seed_means(as_scores(values, kept))
    assert means[0, 0] == 3.0, "mean over samples of the mean over runs"
    assert np.isnan(means[0, 1])
    assert over_seeds(means)[0] == 3.0


def test_doubling_buys_what_it_says() -> None:
    design = Design(60, 20, samples=2, runs=5, arm_seeds=3, control_seeds=1)
    assert (doubled(design, "cluster").items, doubled(design, "cluster").clusters) == (120, 40)
    assert (doubled(design, "item").items, doubled(design, "item").clusters) == (120, 20)
    assert (doubled(design, "sample").samples, doubled(design, "run").runs) == (4, 10)
    assert (doubled(design, "seed").arm_seeds, doubled(design, "seed").control_seeds) == (6, 1)
    assert doubled(Design(9, 9), "item") == Design(18, 18), "items that are clusters of their own bring new ones"
    both = doubled(Design(9, 9, arm_seeds=2, control_seeds=2), "seed")
    assert (both.arm_seeds, both.control_seeds) == (4, 4)
    assert design.judgements == 60 * 2 * 5 * 4
