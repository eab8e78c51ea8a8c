"""The gate of a pipeline: from a verdict to an exit code, and to what a pull request says of it. Knows no stage and no service."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from flows.analysis.bootstrap import Interval
from flows.analysis.verdict import Verdict, effect
from flows.errors import UserError
from flows.finished_run import FinishedRun
from flows.outcome import Outcome

EXIT_CODES = {Verdict.BETTER: 0, Verdict.NON_INFERIOR: 0, Verdict.WORSE: 3, Verdict.INCONCLUSIVE: 4}


@dataclass(frozen=True, slots=True)
class GatedContrast:
    """What the gate reads of a contrast; the meaning is that of `flows.analysis.contrasts.Contrast`."""

    arm: str
    control: str
    criterion: str
    primary: bool
    verdict: Verdict
    sentence: str
    notes: tuple[str, ...]
    difference: float | None
    interval: Interval | None
    p_value_adjusted: float | None

    @property
    def passes(self) -> bool:
        """Better or non-inferior."""
        return EXIT_CODES[self.verdict] == 0


@dataclass(frozen=True, slots=True)
class Gate:
    """A finished run before the gate. The primary contrast decides; the others are told."""

    outcome: Outcome
    run: str
    trial: str
    margin: float
    primary: GatedContrast
    secondary: tuple[GatedContrast, ...]

    @property
    def exit_code(self) -> int:
        """0 better or non-inferior, 3 worse, 4 inconclusive."""
        return EXIT_CODES[self.primary.verdict]


def gate_of(run: FinishedRun) -> Gate:
    """The gate of a run. Raises UserError when its report is not what its outcome says."""
    try:
        contrasts = TypeAdapter(tuple[GatedContrast, ...]).validate_python(run.report["contrasts"])
        margin = float(run.report["settings"]["analysis"]["margin"])
        [primary] = [one for one in contrasts if one.primary]
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise UserError(f"{run.folder / 'report.json'} holds no contrasts to gate on: {str(error).splitlines()[0]}") from None
    if primary.verdict.value != run.outcome.verdict:
        raise UserError(
            f"{run.folder}: its outcome says {run.outcome.verdict}, its report {primary.verdict.value}: they are not of one run. "
            "Remove the folder and run the trial again"
        )
    secondary = tuple(one for one in contrasts if not one.primary)
    return Gate(run.outcome, run.name, str(run.report["name"]), margin, primary, secondary)


def as_plain(gate: Gate) -> dict[str, Any]:
    """The gate as plain JSON values."""
    outcome = gate.outcome
    return {
        "gate": outcome.gate,
        "exit_code": gate.exit_code,
        "verdict": outcome.verdict,
        "sentence": outcome.sentence,
        "notes": list(outcome.notes),
        "trial": gate.trial,
        "run": gate.run,
        "report": str(outcome.report),
        "margin": gate.margin,
        "contrasts": [_plain(one) for one in (gate.primary, *gate.secondary)],
    }


def _plain(contrast: GatedContrast) -> Mapping[str, Any]:
    return TypeAdapter(GatedContrast).dump_python(contrast, mode="json")  # type: ignore[no-any-return]  # a mapping, for a dataclass


def markdown(gate: Gate) -> str:
    """A summary for a pull request: the sentence, all contrasts, where the report is."""
    outcome = gate.outcome
    word = "passes" if gate.exit_code == 0 else "does not pass"
    lines = [f"### {_cell(gate.trial)}: the gate {word}", "", f"**{_cell(outcome.sentence)}**", ""]
    lines += [f"- {_cell(note)}" for note in outcome.notes] + ([""] if outcome.notes else [])
    lines += ["| arm | criterion | verdict | difference | p (Holm) |", "|---|---|---|---:|---:|"]
    for one in (gate.primary, *gate.secondary):
        verdict = one.verdict.replace("_", "-").lower()
        p = "\u2014" if one.p_value_adjusted is None else "< 0.001" if one.p_value_adjusted < 0.001 else f"{one.p_value_adjusted:.3f}"
        cells = [
            _cell(f"{one.arm} against {one.control}"),
            _cell(one.criterion),
            f"**{verdict}** (primary)" if one.primary else verdict,
            _cell(effect(one.difference, one.interval, gate.margin)),
            p,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"The primary contrast decides, with margin {gate.margin:g}; the others are corrected for their number (Holm).", ""]
    lines += [f"Run `{gate.run}` · report `{outcome.report}`"]
    return "\n".join(lines) + "\n"


def markdown_of_failure(message: str) -> str:
    """The summary where there is no verdict."""
    return f"### The gate was not reached\n\n{_cell(message)}\n"


def _cell(text: str) -> str:
    """Text that neither ends a table's cell nor starts markup."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
