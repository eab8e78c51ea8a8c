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
    for family, classes in found.knowledge.items():
        console.print(f"{escape(family)}: {_known(classes)}", highlight=False)
    for search in found.searches:
        console.print(f"{escape(search['family'])}: {escape(_taken(search))}", highlight=False)
    parts = [_path(found.report), f"{found.seconds / 60:.1f} min", f"{_count(found.tokens)} tokens"]
    if found.trained_tokens:
        parts.append(f"{_count(found.trained_tokens)} trained")
    parts.append("cost unknown" if found.cost_usd is None else f"{found.cost_usd:.2f} USD")
    console.print("report: " + " · ".join(parts) + f" · gate: {found.gate}", highlight=False)
    if found.promoted:
        console.print(f"promoted: {escape(found.promoted)}", highlight=False)
    if again:
        console.print(
            f"[dim]finished {found.finished[:16].replace('T', ' ')} UTC; nothing has changed since, so nothing was computed[/]",
            highlight=False,
        )


def _taken(search: Mapping[str, Any]) -> str:
    """`of 10 trials the best: rank 8 (evaluation loss 1.234)`."""
    best = next(one for one in search["trials"] if one["taken"])
    settings = ", ".join(f"{name} {f'{value:.3g}' if isinstance(value, float) else value}" for name, value in best["settings"].items())
    return f"of {len(search['trials'])} trials the best: {settings} (evaluation loss {best['evaluation_loss']:.4g})"


def _known(classes: Mapping[str, int]) -> str:
    """`of 300 training questions the base knows 12 % highly, 8 % maybe, 20 % weakly, 60 % not at all`."""
    names = {"highly_known": "highly", "maybe_known": "maybe", "weakly_known": "weakly", "unknown": "not at all"}
    asked = sum(classes[name] for name in names)
    if not asked:
        return "none of the training questions has an answer that the base could know"
    shares = ", ".join(f"{100 * classes[name] / asked:.0f} % {word}" for name, word in names.items())
    return f"of {asked} training questions the base knows {shares}"


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


def retrieval(console: Console, found: Mapping[str, Any], folder: Path, *, again: bool) -> None:
    """A study of retrieval: a line for each condition, what it amounts to, and the way to the page."""
    depth, conditions = found["measure"]["k"], found["conditions"]
    one_k = len({condition["k"] for condition in conditions}) == 1
    differences = {difference["condition"]: difference for difference in found["differences"]}
    # The number of questions stands below, unless conditions differ in it.
    counted = len({condition["queries"] for condition in conditions}) > 1
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("condition", min_width=16)
    recall = f"recall@{conditions[0]['k']}" if one_k else "recall@k"
    for column in (f"nDCG@{depth}", recall, f"MRR@{depth}", *(["queries"] if counted else []), "ms", "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    for condition in conditions:
        metrics = {(metric["name"], metric["k"]): metric for metric in condition["metrics"]}
        difference = differences.get(condition["name"])
        shown = _measured(metrics["recall", condition["k"]])
        best = "bold" if condition["name"] == found["best"] and len(conditions) > 1 else ""
        table.add_row(
            escape(condition["name"]),
            _measured(metrics["ndcg", depth]),
            shown if one_k else f"@{condition['k']} {shown}",
            _measured(metrics["mrr", depth]),
            *([str(condition["queries"])] if counted else []),
            "-" if condition["median_ms"] is None else f"{condition['median_ms']:.1f}",
            "" if difference is None else _measured(difference, "+.3f"),
            style=best,
        )
    if not console.is_terminal:
        # As wide as needed: a file has no edge.
        table.width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.print(table, highlight=False)
    console.print(f"\n[bold]{escape(found['sentence'])}[/]", highlight=False)
    if found["not_told_apart"] not in ([], [found["baseline"]]):
        console.print(f"not told apart from it: {escape(', '.join(found['not_told_apart']))}", highlight=False)
    if found["left_out"]:
        names = ", ".join(found["left_out"])
        console.print(f"left out: {escape(names)}, for the retriever has no reranker (TUNETRIAL_RERANKER)", highlight=False)
    for note in found["notes"]:
        console.print(f"note: {escape(note)}", highlight=False)
    without = f", {found['without_gold']} have nothing known to find" if found["without_gold"] else ""
    against = f"difference in nDCG@{depth} from {escape(found['baseline'])}; " if differences else ""
    console.print(
        f"{found['measured']} of {found['asked']} questions measured{without}; {found['counts']['documents']} documents; "
        f"{against}intervals at {100 * found['level']:g} %; ms: median of one search made alone",
        highlight=False,
    )
    console.print(f"report: {_path(folder / 'retrieval.html')}", highlight=False)
    if again:
        when = found["created"][:16].replace("T", " ")
        console.print(f"[dim]finished {when} UTC; nothing has changed since, so nothing was searched[/]", highlight=False)


def _measured(value: Mapping[str, Any], form: str = ".3f") -> str:
    """A mean, and its interval in a second line."""
    if value["mean"] is None:
        return "-"
    interval = value["interval"]
    # Two decimals are enough to read how sure a mean is; of a difference the third may tell on which side of 0 it ends.
    ends = form if form.startswith("+") else ".2f"
    second = "" if interval is None else f"\n[dim]\\[{interval['low']:{ends}}, {interval['high']:{ends}}][/]"
    return f"{value['mean']:{form}}{second}"


def _searching(jobs: int) -> str:
    return f", {jobs} of them at most to search for settings" if jobs else ""


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
        if counts.get("passages_cut"):
            console.print(
                f"[yellow]![/] [bold]retrieval.chunk[/]: {counts['passages_cut']} passages have more than the "
                f"{counts['encoder_max_tokens']} tokens that the encoder reads; by meaning they are found by their beginnings only",
                highlight=False,
            )
    if price is not None:
        console.print(
            f"a run: {price.training_jobs} training jobs{_searching(price.search_jobs)} ({_count(price.training_tokens)} tokens), "
            f"{price.answers} answers ({_count(price.answer_tokens)} tokens), "
            f"{price.judgements} judgements ({_count(price.judge_tokens)} tokens); "
            f"about {price.minutes_on_a_laptop:g} min with the quickstart's base on two cores",
            highlight=False,
        )
        if price.knowledge_answers_most:
            console.print(
                f"before that: {price.knowledge_answers_least} to {price.knowledge_answers_most} answers from memory, "
                "to find out what bases know of the training questions",
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


def models(console: Console, found: Sequence[Mapping[str, Any]]) -> None:
    """A table of what is served."""
    table = Table(box=None, pad_edge=False)
    for column in ("model", "kind", "base", "engine", "state"):
        table.add_column(column)
    for one in found:
        state = one["state"] or (f"stands for {one['target']}" if one["target"] else "")
        why = f": {one['why']}" if one["why"] else ""
        table.add_row(*(escape(text) for text in (one["name"], one["kind"], one["base"], one["engine"], f"{state}{why}")))
    console.print(table)


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
