"""Reference metrics as a judge: the engine `reference`, no language model. The rule is in reference_rule.py. Knows no wire."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from services.common.errors import FailedPrecondition, InvalidArgument
from services.judge import reference_rule
from services.judge.domain import Case, Criterion, Draft, Judgement, Rubric, Run, Usage
from services.judge.reference_rule import Numbers, Signals, YesNo
from services.judge.reference_text import Overlap, Text, agrees_on_yes_no, opposite, overlap, read, with_digits
from services.judge.rubrics import reference_rubric

_SCORES: Mapping[str, Callable[[Signals], int]] = {"accuracy": reference_rule.accuracy, "completeness": reference_rule.completeness}


class Encoder(Protocol):
    """Port to sentence embeddings."""

    @property
    def name(self) -> str:
        """Of the model, as set."""

    async def similarities(self, text: str, others: Sequence[str]) -> tuple[float, ...]:
        """Cosine of one text with each of the others, -1 to 1."""


class ReferenceJudge:
    """Scores accuracy and completeness by what an answer shares with its references. Deterministic: one run, no tokens, no cost."""

    def __init__(self, encoder: Encoder, criteria: Mapping[str, Criterion], abstentions: Sequence[str]) -> None:
        self._encoder, self._criteria, self._abstentions = encoder, criteria, tuple(abstentions)
        # Similarities of another encoder make other scores, so the rule has another name then.
        self._rule = reference_rule.NAME if encoder.name == reference_rule.ENCODER else f"{reference_rule.NAME}+{encoder.name}"
        if self._abstentions:
            # So do other texts that count as abstentions.
            self._rule += "+" + hashlib.sha256("\n".join(sorted(self._abstentions)).encode()).hexdigest()[:8]

    def freeze(self, draft: Draft) -> Rubric:
        """The rubric of the rule. Raises FailedPrecondition CRITERION_NOT_SUPPORTED."""
        return reference_rubric(draft, self._criteria, frozenset(_SCORES), self._rule)

    async def write_steps(self, rubric: Rubric) -> tuple[tuple[str, ...], Usage]:
        """The rule has no steps."""
        return (), Usage()

    async def judge(self, rubric: Rubric, case: Case, run_count: int, seed: int | None) -> Judgement:
        """One run; the seed changes nothing. Raises InvalidArgument RUN_COUNT_INVALID, FailedPrecondition RULE_CHANGED."""
        if run_count != 1:
            raise InvalidArgument(
                "RUN_COUNT_INVALID",
                "the reference engine gives the same score every time: run_count is 1, not {count}",
                count=run_count,
                field="run_count",
            )
        if rubric.model != self._rule:
            raise FailedPrecondition(
                "RULE_CHANGED",
                "the rubric was frozen for {frozen}, and this judge follows {rule}: create the rubric again",
                frozen=rubric.model,
                rule=self._rule,
            )
        started = time.monotonic()
        answer = read(case.answer, self._abstentions)
        references = [read(reference, self._abstentions) for reference in case.references]
        overlaps = [overlap(answer, reference) for reference in references]
        similar = await self._encoder.similarities(case.answer, case.references) if answer.tokens else None
        signals = [
            _signals(case.question, with_digits(answer), with_digits(reference), similar[number] if similar else None)
            for number, reference in enumerate(references)
        ]
        score = float(max(_SCORES[rubric.criterion](signal) for signal in signals))
        usage = Usage(latency_ms=(time.monotonic() - started) * 1e3)
        return Judgement((Run(score, usage=usage),), usage, _metrics(overlaps, similar))


def _metrics(overlaps: Sequence[Overlap], similar: Sequence[float] | None) -> dict[str, float]:
    # Each over the reference that suits it best. An empty answer has no embedding, so it has no similarity: absent, not 0.
    metrics = {
        "exact_match": float(any(shared.equal for shared in overlaps)),
        "token_f1": max(shared.f1 for shared in overlaps),
        "token_precision": max(shared.precision for shared in overlaps),
        "token_recall": max(shared.recall for shared in overlaps),
        "containment": float(any(shared.contains_reference for shared in overlaps)),
        "containment_in_reference": float(any(shared.in_reference for shared in overlaps)),
    }
    if similar is not None:
        metrics["embedding_similarity"] = min(1.0, max(0.0, *similar))
    return metrics


def _signals(question: str, answer: Text, reference: Text, similarity: float | None) -> Signals:
    shared = overlap(answer, reference)
    long = min(len(answer.tokens), len(reference.tokens)) >= reference_rule.SHORTEST_FOR_SIMILARITY
    return Signals(
        answered=bool(answer.tokens),
        abstains=answer.abstains,
        should_abstain=reference.abstains,
        opposite=opposite(question, answer, reference),
        numbers=_numbers(answer, reference),
        yes_no=_yes_no(question, answer, reference),
        equal=shared.equal,
        contains_reference=shared.contains_reference,
        in_reference=shared.in_reference and not shared.only_function_words,
        precision=0.0 if shared.only_function_words else shared.precision,
        recall=0.0 if shared.only_function_words else shared.recall,
        similarity=similarity if long else None,
    )


def _numbers(answer: Text, reference: Text) -> Numbers:
    asked, given = reference.numbers, answer.numbers
    if not asked:
        return Numbers.NONE_ASKED
    if asked <= given:
        return Numbers.ALL
    if not given:
        return Numbers.ALL_MISSING
    if not asked & given:
        return Numbers.DIFFERENT
    return Numbers.MIXED if given - asked else Numbers.SOME_MISSING


def _yes_no(question: str, answer: Text, reference: Text) -> YesNo:
    if not agrees_on_yes_no(question, answer, reference):
        return YesNo.NONE
    if len(reference.tokens) == 1:
        return YesNo.SAME_AS_BARE_REFERENCE
    return YesNo.SAME_BARE_ANSWER if len(answer.tokens) == 1 else YesNo.SAME
