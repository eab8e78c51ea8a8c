"""Drawing tokens: seeds, truncation and numbers."""

from __future__ import annotations

import math

import pytest
import torch

from services.generator.sampling import log_probabilities, sample

LOGITS = torch.tensor([0.0, math.log(2), math.log(4), math.log(1), -torch.inf])
"""Probabilities 1/8, 2/8, 4/8, 1/8, 0."""


def draws(count: int, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [sample(LOGITS, temperature, top_k, top_p, generator) for _ in range(count)]


def test_tokens_come_as_often_as_their_probability() -> None:
    drawn = draws(4000)
    shares = [drawn.count(token) / 4000 for token in range(5)]
    assert shares == pytest.approx([0.125, 0.25, 0.5, 0.125, 0.0], abs=0.03)


def test_temperature_sharpens_and_flattens() -> None:
    cold, hot = draws(2000, temperature=0.5), draws(2000, temperature=2.0)
    # p^2 normalised: 16/22 for the best; sqrt(p) normalised: 2/(1+1.414+2+1).
    assert cold.count(2) / 2000 == pytest.approx(16 / 22, abs=0.04)
    assert hot.count(2) / 2000 == pytest.approx(2 / 5.414, abs=0.04)


def test_top_k_keeps_the_most_probable() -> None:
    assert set(draws(500, top_k=2)) == {1, 2}
    assert set(draws(50, top_k=1)) == {2}
    assert set(draws(500, top_k=99)) == {0, 1, 2, 3}


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, {2}), (0.5, {2}), (0.51, {1, 2}), (0.75, {1, 2}), (0.8, {0, 1, 2}), (1.0, {0, 1, 2, 3})])
def test_the_nucleus_is_the_smallest_set_that_reaches_the_mass(top_p: float, kept: set[int]) -> None:
    assert set(draws(500, top_p=top_p)) == kept


def test_the_same_seed_draws_the_same_and_rounding_noise_changes_nothing() -> None:
    assert draws(100, seed=5) == draws(100, seed=5) != draws(100, seed=6)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    noisy = LOGITS + torch.tensor([1e-6, -1e-6, 1e-6, -1e-6, 0.0])
    pairs = [(sample(LOGITS, 1.0, None, 0.95, generators[0]), sample(noisy, 1.0, None, 0.95, generators[1])) for _ in range(500)]
    assert all(one == other for one, other in pairs)


def test_log_probabilities_are_natural_and_the_best_come_first() -> None:
    own, top = log_probabilities(LOGITS, 1, 3)
    assert own == pytest.approx(math.log(0.25))
    assert [token for token, _ in top][:2] == [2, 1]
    assert [value for _, value in top] == pytest.approx([math.log(0.5), math.log(0.25), math.log(0.125)])
    own, top = log_probabilities(LOGITS, 0, 0)
    assert own == pytest.approx(math.log(0.125))
    assert top == ()
