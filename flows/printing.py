"""How results look to people and to programs. Knows no stage."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.progress import Progress, Silent
from flows.screen import Bars, Lines

if TYPE_CHECKING:
    from flows.outcome import Outcome
    from flows.validate import Cost, Finding

_COLOURS = {"BETTER": "green", "NON_INFERIOR": "green", "WORSE": "red", "INCONCLUSIVE": "yellow"}
_ALSO = 3


@contextlib.contextmanager
def listener(console: Console, *, quiet: bool) -> Iterator[Progress]:
    """Bars on a terminal, lines elsewhere, nothing when quiet."""
    if quiet:
        yield Silent()
        return
    with Bars(console) if console.is_terminal else Lines(console) as found:
        yield found


def as_json(value: Any) -> None:
    """A value as JSON on standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def outcome(console: Console, found: Outcome, *, again: bool) -> None:
    """The verdict, the other contrasts in short, and the way to the page."""
    colour = _COLOURS[found.verdict]
    console.print(f"\n[bold {colour}]{escape(found.sentence)}[/]", highlight=False)
    for note in found.notes:
        console.print(f"note: {escape(note)}", highlight=False)
    if found.also:
        more = found.contrasts - 1 - min(len(found.also), _ALSO)
        rest = f" · {more} more contrast{'s' if more > 1 else ''} in the report (Holm)" if more > 0 else ""
        console.print("also: " + escape(" · ".join(found.also[:_ALSO])) + rest, highlight=False)
    parts = [_path(found.report), f"{found.seconds / 60:.1f} min", f"{_count(found.tokens)} tokens"]
    if found.trained_tokens:
        parts.append(f"{_count(found.trained_tokens)} trained")
    parts.append("cost unknown" if found.cost_usd is None else f"{found.cost_usd:.2f} USD")
    console.print("report: " + " · ".join(parts) + f" · gate: {found.gate}", highlight=False)
    if again:
        console.print(
            f"[dim]finished {found.finished[:16].replace('T', ' ')} UTC; nothing has changed since, so nothing was computed[/]",
            highlight=False,
        )


def outcomes(console: Console, found: Sequence[Outcome]) -> None:
    """A table of runs."""
    table = Table(box=None, pad_edge=False)
    for column in ("run", "finished (UTC)", "verdict", "gate", "items", "arms", "minutes"):
        table.add_column(column, justify="right" if column in ("items", "arms", "minutes") else "left")
    for one in found:
        verdict = f"[{_COLOURS[one.verdict]}]{one.verdict}[/]"
        when = one.finished[:16].replace("T", " ")
        table.add_row(Path(one.folder).name, when, verdict, one.gate, str(one.items), str(one.arms), f"{one.seconds / 60:.1f}")
    console.print(table)


def validation(console: Console, spec: Path, found: Sequence[Finding], price: Cost | None, counts: Mapping[str, Any]) -> None:
    """What `validate` found, and what a run would cost."""
    for one in found:
        console.print(f"[red]✗[/] [bold]{escape(one.where)}[/]: {escape(one.problem)}", highlight=False)
    if counts:
        skipped = sum(counts["rows_skipped"].values())
        console.print(
            f"data: {counts['rows_read']} rows read, {skipped} skipped, {counts['items']} items in {counts['clusters']} clusters; "
            f"test {counts['test_items']} items in {counts['test_clusters']} clusters, training pool {counts['pool_items']}; "
            f"{counts['documents']} documents, {counts['passages']} passages",
            highlight=False,
        )
    if price is not None:
        console.print(
            f"a run: {price.training_jobs} training jobs ({_count(price.training_tokens)} tokens), {price.answers} answers "
            f"({_count(price.answer_tokens)} tokens), {price.judgements} judgements ({_count(price.judge_tokens)} tokens); "
            f"about {price.minutes_on_a_laptop:g} min with the quickstart's base on two cores",
            highlight=False,
        )
    verdict = f"[red]{len(found)} problem{'s' if len(found) != 1 else ''}[/]" if found else "[green]ready to run[/]"
    console.print(f"{escape(str(spec))}: {verdict}", highlight=False)


def addresses(console: Console, found: Mapping[str, str], *, as_json: bool) -> None:
    """Where the services are, and how to use them."""
    if as_json:
        sys.stdout.write(json.dumps(dict(found)) + "\n")
        sys.stdout.flush()
        return
    for service, address in found.items():
        console.print(f"{service:<10} {address}", highlight=False)
    console.print("[dim]running; `tunetrial ask` and `tunetrial run` with the same --home use them. Ctrl-C stops them.[/]", highlight=False)


def answer(console: Console, aside: Console, found: Mapping[str, Any]) -> None:
    """The end of an answer that was streamed: the passages that the model saw, and what it took."""
    console.print()
    for passage in found["passages"]:
        mark = "[green]cited[/]" if passage["id"] in found["cited"] else f"{passage['rank']:>5}"
        aside.print(f"{mark} [dim]{escape(passage['id'])}[/] {escape(passage['text'][:200])}", highlight=False)
    used = f"{found['prompt_tokens']} + {found['completion_tokens']} tokens, {found['latency_ms']:.0f} ms"
    aside.print(f"[dim]{escape(found['model'])}, {used}[/]", highlight=False)


def _count(tokens: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tokens >= size:
            return f"{tokens / size:.1f} {unit}"
    return str(tokens)


def _path(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
