"""What a draft must be to be frozen, and what stands where it says nothing. Knows no engine's inside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime

from services.common.errors import FailedPrecondition, InvalidArgument
from services.judge.domain import Criterion, Draft, EngineName, Mode, Rubric, check_run_count

LOW, HIGH = 1, 5
_MOST_STEPS, _LONGEST_NAME, _LONGEST_TEXT = 50, 64, 20_000
_HIGHEST = 100
_LAST_DIGIT = 9
# The study that the whole asks about averaged ten runs (arXiv 2406.11201).
_RUNS_OF_SAMPLES = 10


def language_model_rubric(draft: Draft, criteria: Mapping[str, Criterion], default_model: str) -> Rubric:
    """For a language model; without steps where the draft brings none. Raises InvalidArgument, FailedPrecondition MODEL_NOT_SET."""
    description = _description(draft, criteria)
    for number, step in enumerate(draft.steps):
        if not step.strip() or len(step) > _LONGEST_TEXT:
            raise InvalidArgument(
                "STEP_INVALID", "a step is 1 to {most} characters, not blank", most=_LONGEST_TEXT, field=f"steps[{number}]"
            )
    if len(draft.steps) > _MOST_STEPS:
        raise InvalidArgument("STEP_INVALID", "{count} steps: give {most} at most", count=len(draft.steps), most=_MOST_STEPS, field="steps")
    mode = draft.mode or Mode.SAMPLES
    low, high = _scale(draft)
    if mode is Mode.TOKEN_PROBABILITIES and high > _LAST_DIGIT:
        # A score of two digits may be two tokens, and then the probability of its first digit is that of several scores.
        raise InvalidArgument(
            "SCALE_INVALID",
            "mode token_probabilities needs scores of one digit, 0 to 9, not {low} to {high}",
            low=low,
            high=high,
            field="high",
        )
    model = draft.model or default_model
    if not model:
        raise FailedPrecondition("MODEL_NOT_SET", "name a model in the request or set TUNETRIAL_OPENAI_MODEL", field="model")
    sampled = mode is Mode.SAMPLES
    temperature = draft.temperature if draft.temperature is not None else float(sampled)
    if not (math.isfinite(temperature) and 0 <= temperature <= 2):
        raise InvalidArgument("TEMPERATURE_INVALID", "temperature is {value}: give 0 to 2", value=temperature, field="temperature")
    count = draft.run_count if draft.run_count is not None else _RUNS_OF_SAMPLES if sampled else 1
    check_run_count(count)
    steps = tuple(step.strip() for step in draft.steps)
    return Rubric(
        draft.criterion, description, steps, low, high, EngineName.OPENAI, model, mode, temperature, count, create_time=datetime.now(UTC)
    )


def reference_rubric(draft: Draft, criteria: Mapping[str, Criterion], supported: frozenset[str], rule: str) -> Rubric:
    """A rubric for a fixed rule, which can neither be instructed nor sampled. Raises InvalidArgument, FailedPrecondition."""
    if draft.criterion not in supported:
        raise FailedPrecondition(
            "CRITERION_NOT_SUPPORTED",
            "the reference engine scores {supported}, not {criterion}: use engine openai for other criteria",
            supported=" and ".join(sorted(supported)),
            criterion=draft.criterion,
            field="criterion",
        )
    shipped = criteria[draft.criterion].description
    if draft.model not in ("", rule):
        raise FailedPrecondition(
            "JUDGE_MODEL_UNKNOWN",
            "the reference engine here follows {rule}, not {model}: leave model empty",
            rule=rule,
            model=draft.model,
            field="model",
        )
    given = {
        "description": draft.description not in ("", shipped),
        "steps": bool(draft.steps),
        "mode": draft.mode is not None,
        "temperature": draft.temperature is not None,
        "run_count": draft.run_count not in (None, 1),
    }
    for field, differs in given.items():
        if differs:
            raise InvalidArgument(
                "REFERENCE_RULE_FIXED",
                "the reference engine follows the fixed rule {rule} in one run: leave {field} unset",
                rule=rule,
                field=field,
            )
    if _scale(draft) != (LOW, HIGH):
        raise InvalidArgument("SCALE_INVALID", "the reference engine scores from {low} to {high}", low=LOW, high=HIGH, field="high")
    return Rubric(draft.criterion, shipped, (), LOW, HIGH, EngineName.REFERENCE, rule, None, None, 1, create_time=datetime.now(UTC))


def _description(draft: Draft, criteria: Mapping[str, Criterion]) -> str:
    if not draft.criterion.strip() or not draft.criterion.isprintable() or len(draft.criterion) > _LONGEST_NAME:
        raise InvalidArgument(
            "CRITERION_INVALID", "name the criterion in 1 to {most} printable characters", most=_LONGEST_NAME, field="criterion"
        )
    known = criteria.get(draft.criterion)
    description = draft.description.strip() or (known.description if known else "")
    if not description or len(description) > _LONGEST_TEXT:
        raise InvalidArgument(
            "CRITERION_INVALID",
            "criterion {criterion} does not ship ({known} do): describe it in 1 to {most} characters",
            criterion=draft.criterion,
            known=", ".join(sorted(criteria)),
            most=_LONGEST_TEXT,
            field="description",
        )
    return description


def _scale(draft: Draft) -> tuple[int, int]:
    low = LOW if draft.low is None else draft.low
    high = HIGH if draft.high is None else draft.high
    if not 0 <= low < high <= _HIGHEST:
        raise InvalidArgument(
            "SCALE_INVALID", "{low} to {high} is no scale: 0 <= low < high <= {most}", low=low, high=high, most=_HIGHEST, field="high"
        )
    return low, high
