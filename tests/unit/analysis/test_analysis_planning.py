"""Plans: against statsmodels where there are no layers, and against simulated trials that are analysed as real ones."""

import math
from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.power import TTestPower  # type: ignore[import-untyped]  # statsmodels ships no type information

from flows.analysis.layers import LAYERS, ArmVariances, Components, Design, Layer, variances_of_mean
from flows.analysis.paired import Statistic, estimates, paired_statistic
from flows.analysis.planning import Goal, cheapest, goals, notes, power_of, routes, smallest, standard_error, variance_table
from tests.unit.analysis.planted import SDS, two_arms

PLAIN = Components(None, 0.64, ArmVariances(), ArmVariances())
BETTER = Goal("better", 0.2, 0.0)


def planted(sds: dict[str, float]) -> Components:
    seed, seed_item, sample, run = (sds[name] ** 2 for name in ("seed", "seed_item", "sample", "run"))
    return Components(
        sds["cluster"] ** 2, sds["item"] ** 2, ArmVariances(seed, seed_item, sample, run), ArmVariances(sample=sample, run=run)
    )


@pytest.mark.parametrize("items", [10, 40, 160])
def test_the_power_of_single_items_is_that_of_the_t_test(items: int) -> None:
    expected = TTestPower().power(0.2 / 0.8, nobs=items, alpha=0.025, alternative="larger")
    assert power_of(PLAIN, Design(items, items), BETTER) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("power", [0.8, 0.9])
def test_the_smallest_number_of_items_is_that_of_the_t_test(power: float) -> None:
    needed = TTestPower().solve_power(0.2 / 0.8, alpha=0.025, power=power, alternative="larger")
    route = smallest(PLAIN, Design(50, 50), replace(BETTER, power=power), "cluster")
    assert route.number == math.ceil(float(needed))
    assert route.design == Design(route.number, route.number)
    assert route.reached >= power > power_of(PLAIN, Design(route.number - 1, route.number - 1), BETTER)


def test_non_inferior_within_a_margin_needs_what_better_by_it_does() -> None:
    better, within = goals(0.2, 0.2, 0.05, 0.8)
    assert (better.claim, within.claim, within.difference, within.bound) == ("better", "non-inferior", 0.0, -0.2)
    assert power_of(PLAIN, Design(80, 80), better) == power_of(PLAIN, Design(80, 80), within)


def test_a_loss_is_planned_as_non_inferior_alone() -> None:
    (only,) = goals(-0.05, 0.1, 0.05, 0.8)
    assert (only.claim, only.difference) == ("non-inferior", -0.05)
    beyond = goals(-0.1, 0.1, 0.05, 0.8)[0]
    assert smallest(PLAIN, Design(50, 50), beyond, "cluster").number is None, "a loss as large as the margin is never within it"


def simulated(design: Design, sizes: np.ndarray, sds: dict[str, float], difference: float, trials: int, seed: int) -> list[Statistic]:
    rng, found = np.random.default_rng(seed), []
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    for _ in range(trials):
        arm, control = two_arms(
            rng,
            clusters,
            (design.arm_seeds, design.samples, design.runs),
            (design.control_seeds, design.samples, design.runs),
            sds,
            difference,
        )
        found.append(paired_statistic(arm.mean(axis=(2, 3)), control.mean(axis=(2, 3)), clusters, len(sizes)))
    return found


@pytest.mark.parametrize(
    ("name", "sizes", "sds", "repeats", "seeds", "claim"),
    [
        ("uneven clusters", [1, 2, 3, 6] * 12, SDS | {"seed": 0.0, "seed_item": 0.0}, (1, 1), (1, 1), "better"),
        ("single items", [1] * 100, SDS | {"cluster": 0.0, "seed": 0.0, "seed_item": 0.0}, (1, 2), (1, 1), "non-inferior"),
        ("two seeds that differ much", [2] * 60, SDS | {"seed": 0.2}, (1, 2), (2, 1), "better"),
        ("three seeds", [2] * 60, SDS | {"seed": 0.1}, (1, 2), (3, 1), "better"),
        ("ten seeds that differ much", [2] * 60, SDS | {"seed": 0.2}, (1, 1), (10, 1), "non-inferior"),
        ("both arms trained", [2] * 60, SDS | {"seed": 0.1}, (1, 1), (3, 2), "better"),
        ("one seed of several", [2] * 60, SDS | {"seed": 0.1}, (2, 2), (1, 1), "better"),
    ],
)
def test_simulated_trials_reach_the_planned_power_within_three_points(
    name: str, sizes: list[int], sds: dict[str, float], repeats: tuple[int, int], seeds: tuple[int, int], claim: str
) -> None:
    groups = np.array(sizes)
    items = int(groups.sum())
    design = Design(items, len(sizes), *repeats, *seeds, unevenness=float(len(sizes) * (groups**2).sum() / items**2))
    layers = planted(sds)
    if seeds[1] > 1:
        layers = replace(layers, control=layers.arm)
    distance = 3.0 * standard_error(layers, design)
    goal = Goal("better", distance, 0.0) if claim == "better" else Goal("non-inferior", 0.0, -distance)
    trials = 2000
    statistics = simulated(design, groups, sds, goal.difference, trials, len(name))
    intervals = [estimate.interval(0.05) for estimate in estimates(statistics, 1000, 0) if estimate is not None]
    shown = np.mean([interval is not None and interval.low > goal.bound for interval in intervals])
    planned = power_of(layers, design, goal)
    assert len(intervals) == trials
    assert 0.5 < planned < 0.97
    assert abs(shown - planned) < 0.03, f"{name}: planned {planned:.3f}, reached {shown:.3f}"


def test_below_six_clusters_nothing_is_shown() -> None:
    assert power_of(PLAIN, Design(500, 5), BETTER) == 0.0
    assert power_of(PLAIN, Design(500, 6), replace(BETTER, alpha=0.001)) == 0.0


def test_without_any_variance_what_is_true_is_shown() -> None:
    none = Components(0.0, 0.0, ArmVariances(), ArmVariances())
    assert power_of(none, Design(50, 20), BETTER) == 1.0
    assert power_of(none, Design(50, 20), replace(BETTER, difference=0.0)) == 0.0


def test_the_table_adds_up_and_says_what_doubling_gains() -> None:
    layers, design = planted(SDS), Design(120, 40, samples=2, runs=3, arm_seeds=3)
    table = {row.layer: row for row in variance_table(layers, design)}
    assert tuple(table) == LAYERS
    assert sum(row.share for row in table.values()) == pytest.approx(1.0)
    now = standard_error(layers, design)
    assert table["run"].doubled == pytest.approx(standard_error(layers, replace(design, runs=6)))
    assert table["cluster"].gain == pytest.approx(1 - standard_error(layers, replace(design, items=240, clusters=80)) / now)
    assert table["seed"].doubled == pytest.approx(standard_error(layers, replace(design, arm_seeds=6)))
    assert table["sample"].sd == pytest.approx(0.4 * 2**0.5)
    assert (table["run"].arm_sd, table["run"].control_sd, table["item"].arm_sd) == pytest.approx((0.6, 0.6, None))
    assert table["seed_item"].doubled is None
    assert table["run"].judgements == 120 * 2 * 6 * 4


def test_each_route_is_the_smallest_that_reaches() -> None:
    layers, design = planted(SDS | {"seed": 0.05}), Design(90, 30, runs=2, arm_seeds=3)
    found = {route.layer: route for route in routes(layers, design, replace(BETTER, difference=0.4))}
    assert set(found) == {"seed", "cluster", "item", "sample", "run"}
    items, each = found["cluster"].number or 0, found["item"].number or 0
    one_less: dict[Layer, Design] = {
        "cluster": replace(design, clusters=items / 3 - 1, items=items - 3),
        "item": replace(design, items=30 * (each - 1)),
    }
    for layer, fewer in one_less.items():
        assert found[layer].reached >= 0.8 > power_of(layers, fewer, replace(BETTER, difference=0.4))


def test_what_no_number_reaches_is_said_with_the_power_it_would_have() -> None:
    layers = planted(SDS | {"seed": 0.3})
    route = smallest(layers, Design(90, 30, arm_seeds=3), BETTER, "cluster")
    assert (route.number, route.design) == (None, None)
    assert route.reached < 0.3, "three seeds that differ by 0.3 hide a difference of 0.2, whatever the number of items"


def test_together_layers_reach_what_none_does_alone() -> None:
    layers, design = planted(SDS | {"seed": 0.1}), Design(90, 30, arm_seeds=3)
    goal = Goal("non-inferior", 0.0, -0.1)
    assert all(route.number is None for route in routes(layers, design, goal))
    found = cheapest(layers, design, goal)
    assert found
    assert all(power_of(layers, one, goal) >= 0.8 for one in found)
    seeds = [one.arm_seeds for one in found]
    assert seeds == sorted(seeds)
    assert seeds[0] > 3
    for one in found:
        for runs in (1, 2, 5):
            other = smallest(layers, replace(design, arm_seeds=one.arm_seeds, runs=runs), goal, "cluster").design
            assert other is None or other.judgements >= one.judgements


def test_notes_say_what_is_not_known() -> None:
    said = " ".join(notes(PLAIN, Design(50, 50), ("seed", "item", "sample", "run")))
    assert "sample: not told apart" in said
    assert "counted in item" in said
    assert "one adapter that was trained" in said
    told = notes(planted(SDS), Design(50, 25, arm_seeds=1))
    assert [note for note in told if "about that one adapter" in note]
    assert notes(planted(SDS), Design(50, 25, arm_seeds=3)) == ()
    cut = Components(0.0, 1.0, ArmVariances(sample=0.0), ArmVariances(), truncated=("cluster", "arm sample"))
    assert [note.split(":")[0] for note in notes(cut, Design(50, 25), ("cluster", "item"))] == ["cluster", "arm sample"]


def test_layers_fall_as_the_formula_says() -> None:
    parts = variances_of_mean(planted(SDS), Design(100, 50, samples=2, runs=4, arm_seeds=5))
    expected = {
        "seed": 0.04 / 5,
        "cluster": 0.09 / 50,
        "item": 0.25 / 100,
        "seed_item": 0.0625 / 500,
        "sample": 0.16 / 1000 + 0.16 / 200,
        "run": 0.36 / 4000 + 0.36 / 800,
    }
    assert parts == pytest.approx(expected)
