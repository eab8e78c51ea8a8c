"""What the report page is made from. Knows no service, no stage and no file.

The stage that builds a `TrialReport` passes what other stages left as plain mappings, so that this package depends on records and analysis
only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.analysis.analyse import Analysis
from flows.analysis.contrasts import Contrast
from flows.analysis.verdict import Verdict
from flows.records import Answer, Contestant, Hit, Item, Judgement, Passage


@dataclass(frozen=True, slots=True)
class TrialReport:
    """One finished trial, all of it."""

    name: str
    run_id: str
    created: str
    """ISO 8601, with the offset from UTC."""
    stages: Mapping[str, float]
    """Seconds of each stage in this run; a stage that found its work done is near 0."""
    spec: Mapping[str, Any]
    """The spec as JSON, defaults filled in."""
    spec_text: str
    """The spec as the user wrote it."""
    inputs: Mapping[str, Any]
    """Hashes of all that went in."""
    counts: Mapping[str, Any]
    """What was read: `rows_read`, `rows_skipped` (reason -> rows), `bad_rows`, `items`, `clusters`, `documents`, `passages`,
    `passages_cut` (longer than the encoder reads; None where not counted), `encoder_max_tokens`, `evidence`, `evidence_unmapped`,
    `test_items`, `test_clusters`, `pool_items`, `pool_unusable`, `unused_items`, `stand_alone`
    (whether questions make sense without their document)."""
    leaks: Sequence[Mapping[str, Any]]
    """`kind`, `left_pool`, `left_item`, `left_question`, `right_pool`, `right_item`, `right_question`, `similarity`."""
    adapters: Sequence[Mapping[str, Any]]
    """`family`, `size`, `seed`, `name`, `weights_sha256`, `final_loss`, `trained_tokens`, `training_s`, `examples`, `truncated`, `masked`,
    `short`."""
    proofs: Sequence[Mapping[str, Any]]
    """`adapter`, `weights_sha256`, `canary_count`, `difference_from_base`, `base_noise`, `difference_from_manifest`, `tolerance`; nats."""
    rubrics: Sequence[Mapping[str, Any]]
    """`hash`, `criterion`, `run_count` and `details`, the rubric as the judge keeps it."""
    template: Mapping[str, Any]
    """`name`, `user`, `system`, `abstentions`."""
    contestants: Sequence[Contestant]
    items: Sequence[Item]
    passages: Mapping[str, Passage]
    """By id; at least those that were retrieved, shown or gold; parents of passages too, as shown."""
    gold: Mapping[str, tuple[str, ...]]
    hits: Sequence[Hit]
    answers: Sequence[Answer]
    judgements: Sequence[Judgement]
    analysis: Analysis
    versions: Mapping[str, str]
    """Library -> version."""
    reranker: str = ""
    """The cross-encoder that reordered what was retrieved; "" without reranking."""
    knowledge: Sequence[Mapping[str, Any]] = ()
    """What bases know of training questions, by family: `family`, `model`, `questions`, `classes` (class -> questions), `keep`,
    `evaluate_on`, `settings`, `answers`, `prompt_tokens`, `completion_tokens`, `cost_usd`."""
    knowledge_tags: Sequence[Mapping[str, Any]] = ()
    """The same question by question: `family`, `item`, `question`, `class`, `p_greedy`, `p_sampled`, `kept`."""
    preferences: Sequence[Mapping[str, Any]] = ()
    """Pairs of answers, by family: `family`, `source` (a file or a run), `counts` (reason -> number)."""
    searches: Sequence[Mapping[str, Any]] = ()
    """Searches for settings, by family: `family`, `size`, `seed`, `wanted`, and `trials`: `settings`, `evaluation_loss` (None where it
    failed), `seconds`, `trained_tokens`, `adapter`, `error`, `taken`."""


def gate_passes(primary: Contrast) -> bool:
    """Whether the arm may replace the control: shown to be better, or not worse by the margin. Inconclusive does not pass."""
    return primary.verdict in (Verdict.BETTER, Verdict.NON_INFERIOR)
