"""The command `tunetrial`. Knows how to talk to people and programs; all work is elsewhere.

Results go to standard output (as text, or as JSON with --json), everything else to standard error. Exit codes: 0 done, 2 a mistake in what
was given, 1 a failure, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from flows import printing
from flows.commands.calibrate import calibrate
from flows.commands.compare import compare
from flows.commands.gate import gate
from flows.commands.plan import plan
from flows.errors import TrialError, UserError
from flows.running import interruptible, run_trial, wait_for

if TYPE_CHECKING:
    from flows.stages.prepare import Prepared
    from flows.validate import Cost, Finding

app = typer.Typer(
    name="tunetrial",
    help="Controlled trials of fine-tuned language models inside a RAG pipeline, with a verdict.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)
out = Console(soft_wrap=True)
err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The experiment, a YAML file.")]
Home = Annotated[Path, typer.Option("--home", envvar="TUNETRIAL_HOME", help="Keeps results and the local services' data.")]
Runs = Annotated[Path, typer.Option("--runs", envvar="TUNETRIAL_RUNS", help="Gets a folder for each run, with its report.")]

_HOME = Path(".tunetrial")
_RUNS = Path("runs")
_QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart" / "trial.yaml"


def main() -> None:
    """Entry point: runs the command and turns expected failures into sentences and exit codes."""
    as_json = "--json" in sys.argv
    try:
        app(standalone_mode=True)
    except TrialError as error:
        _fail(str(error), error.exit_code, as_json=as_json)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"the disk is full{where}: free some space and run the same command again; finished work is kept", 1, as_json=as_json)


def _fail(message: str, code: int, *, as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps({"error": {"message": message, "exit_code": code}}))
    else:
        err.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(code)


@app.command(epilog="Example: `tunetrial run examples/quickstart/trial.yaml`")
def run(spec: SpecPath, home: Home = _HOME, runs: Runs = _RUNS, as_json: Json = False) -> None:
    """Run a trial to its verdict. Run it again after a stop: it goes on; run it again when done: it says what came out."""
    outcome, again = run_trial(spec, home, runs, err, quiet=as_json)
    if as_json:
        printing.as_json(asdict(outcome) | {"report": str(outcome.report)})
    else:
        printing.outcome(out, outcome, again=again)


@app.command(epilog="Example: `tunetrial validate my-trial.yaml --json`")
def validate(
    spec: SpecPath,
    home: Home = _HOME,
    contact: Annotated[bool, typer.Option("--contact/--no-contact", help="Start or contact the services too.")] = True,
    as_json: Json = False,
) -> None:
    """Check a spec: reads all data, contacts all services, spends nothing; says what a run would cost."""
    from flows.progress import Silent  # noqa: PLC0415
    from flows.spec_file import SpecError, load  # noqa: PLC0415
    from flows.trial import open_trial  # noqa: PLC0415
    from flows.validate import Finding, cost, findings  # noqa: PLC0415

    try:
        trial = open_trial(load(spec), home.resolve(), Silent())
    except SpecError as error:
        split = [problem.partition(": ") for problem in error.problems]
        _say_validation(spec, [Finding(where, said) for where, _, said in split], None, {}, as_json=as_json)
        raise typer.Exit(2) from None

    async def work() -> tuple[list[Finding], Prepared | None]:
        try:
            return await findings(trial, contact=contact)
        finally:
            await trial.services.close()

    with contextlib.nullcontext() if as_json else err.status("reading data, contacting services"):
        found, prepared = wait_for(work())
    price = cost(trial.spec, prepared) if prepared is not None else None
    counts = dict(prepared.counts) if prepared is not None else {}
    _say_validation(spec, found, price, counts, as_json=as_json)
    if found:
        raise typer.Exit(2)


def _say_validation(spec: Path, found: list[Finding], price: Cost | None, counts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        problems = [asdict(one) for one in found]
        printing.as_json({"valid": not found, "problems": problems, "cost": asdict(price) if price else None, "data": counts})
    else:
        printing.validation(out, spec, found, price, counts)


@app.command(epilog="Examples: `tunetrial retrieval my-trial.yaml`, `tunetrial retrieval path/to/beir-folder`")
def retrieval(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A trial or a study of retrieval (YAML), or a folder in BEIR's form.")],
    home: Home = _HOME,
    runs: Runs = _RUNS,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the conditions as CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Measure retrieval alone, without generation: lexical, dense, hybrid and reranked search, or what the spec's grid names.

    Every condition answers the same questions; differences come with intervals. After a stop the same command goes on; repeated, it does no
    search again.
    """
    from flows.clients import addresses_from_environment  # noqa: PLC0415
    from flows.local_stack import Busy, is_busy, running_stack  # noqa: PLC0415
    from flows.retrieval_study.inputs import open_study  # noqa: PLC0415
    from flows.retrieval_study.study import Finished, run_study  # noqa: PLC0415
    from flows.spec_file import load_study  # noqa: PLC0415

    if as_csv and as_json:
        raise UserError("give --csv or --json, not both")
    loaded, home = load_study(spec), home.resolve()
    if is_busy(home) and not (addresses_from_environment() or running_stack(home)):
        raise Busy(home)
    with interruptible(), printing.listener(err, quiet=as_json) as listener:
        study = open_study(loaded, home, listener)

        async def work() -> Finished:
            try:
                return await run_study(study, runs.resolve())
            finally:
                await study.services.close()

        finished = wait_for(work())
    if as_json:
        printing.as_json({**finished.report, "folder": str(finished.folder)})
    elif as_csv:
        sys.stdout.write((finished.folder / "conditions.csv").read_text(encoding="utf-8"))
    else:
        printing.retrieval(out, finished.report, finished.folder, again=finished.again)


@app.command(epilog="Example: `tunetrial demo`")
def demo(home: Home = _HOME, runs: Runs = _RUNS, as_json: Json = False) -> None:
    """Run the quickstart: a whole trial on this machine, offline."""
    if not _QUICKSTART.is_file():
        raise UserError(f"the quickstart is not here ({_QUICKSTART}): run this in a checkout of the repository")
    run(_QUICKSTART, home, runs, as_json)


@app.command(epilog="Example: `tunetrial up my-trial.yaml`, then `tunetrial ask` or `tunetrial run` in another terminal")
def up(
    spec: Annotated[Path, typer.Argument(metavar="[SPEC]", help="Whose base models to serve; the quickstart's by default.")] = _QUICKSTART,
    home: Home = _HOME,
    as_json: Json = False,
) -> None:
    """Start the four services on loopback and leave them running until Ctrl-C."""
    from flows.data_spec import is_folder  # noqa: PLC0415
    from flows.local_stack import LocalStack, announce, running_stack  # noqa: PLC0415
    from flows.spec_file import load  # noqa: PLC0415
    from flows.trial import engine_settings  # noqa: PLC0415

    home = home.resolve()
    if running_stack(home) is not None:
        raise UserError(f"services are running in {home} already; stop them first, or choose another --home")
    loaded = load(spec)
    folders = tuple(Path(base) for base in loaded.bases.values() if is_folder(base))
    stack = LocalStack(home, loaded.bases, folders, engines=engine_settings(loaded.spec))

    async def work() -> None:
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        try:
            with contextlib.nullcontext() if as_json else err.status("starting the services"):
                addresses = await stack.start()
            with announce(home, addresses):
                printing.addresses(out, addresses, as_json=as_json)
                while not stopped.is_set():
                    for service in addresses:
                        stack.check(service)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(stopped.wait(), 1)
        finally:
            stack.stop()

    wait_for(work())


@app.command(epilog='Example: `tunetrial ask "Where was Lomira born?" --model small --index quickstart-0123456789abcdef`')
def ask(
    question: Annotated[str, typer.Argument(help="The question.")],
    model: Annotated[str, typer.Option(help="Base, adapter or alias; the first base by default.")] = "",
    index: Annotated[str, typer.Option(help="Index to search; without one the model answers from memory.")] = "",
    k: Annotated[int, typer.Option(min=1, max=100, help="Passages to show.")] = 5,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 64,
    home: Home = _HOME,
    as_json: Json = False,
) -> None:
    """Ask the generator one question; the answer streams, with the passages that it saw. Needs running services: `tunetrial up`."""
    from flows.ask import ask_once  # noqa: PLC0415

    def show(text: str) -> None:
        if not as_json:
            out.print(text, end="", highlight=False, markup=False)
            sys.stdout.flush()

    answer = wait_for(ask_once(home.resolve(), question, model=model, index=index, k=k, max_tokens=max_tokens, show=show))
    if as_json:
        printing.as_json(answer)
        return
    printing.answer(out, err, answer)


@app.command(epilog="Example: `tunetrial models --json`")
def models(home: Home = _HOME, as_json: Json = False) -> None:
    """List what the generator serves: bases, adapters with their state, aliases. Needs running services: `tunetrial up`."""
    from flows.served_models import models as served  # noqa: PLC0415

    found = wait_for(served(home.resolve()))
    if as_json:
        printing.as_json(found)
        return
    printing.models(out, found)


@app.command(epilog="Examples: `tunetrial alias production raft-300-s1`, `tunetrial alias production --back`")
def alias(
    name: Annotated[str, typer.Argument(help="The alias.")],
    target: Annotated[str, typer.Argument(help="Base or adapter that it shall stand for.")] = "",
    back: Annotated[bool, typer.Option("--back", help="Let it stand again for what it stood for before its last change.")] = False,
    home: Home = _HOME,
    as_json: Json = False,
) -> None:
    """Point an alias of the generator at a model, or back. Needs running services: `tunetrial up`."""
    from flows.served_models import roll_back, set_alias  # noqa: PLC0415

    if back == bool(target):
        raise UserError("give either a model or --back; `tunetrial models` lists what there is")
    found = wait_for(roll_back(home.resolve(), name) if back else set_alias(home.resolve(), name, target))
    if as_json:
        printing.as_json(found)
        return
    before = f" (before: {found['history'][1]['target']})" if len(found["history"]) > 1 else ""
    out.print(f"{name} stands for {found['target']}{before}", highlight=False, markup=False)


@app.command(epilog="Example: `tunetrial report quickstart-3f2a10`")
def report(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="Name or folder of a run.")],
    runs: Runs = _RUNS,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Say where the report of a run is and what its verdict was."""
    from flows.outcome import read  # noqa: PLC0415

    folder = Path(run_name) if Path(run_name).is_dir() else runs.resolve() / run_name
    outcome = read(folder)
    if outcome is None:
        known = ", ".join(found.name for found in _run_folders(runs)) or "none"
        raise UserError(f"there is no finished run {run_name!r} in {runs}; finished runs: {known}")
    if open_page:
        typer.launch(outcome.report.as_uri())
    if as_json:
        out.print((folder / "report.json").read_text(encoding="utf-8"), markup=False, highlight=False)
        return
    printing.outcome(out, outcome, again=False)


@app.command()
def runs(runs: Runs = _RUNS, as_json: Json = False) -> None:
    """List finished runs, newest first."""
    from flows.outcome import read  # noqa: PLC0415

    found = sorted((outcome for folder in _run_folders(runs) if (outcome := read(folder))), key=lambda one: one.finished, reverse=True)
    if as_json:
        printing.as_json([asdict(outcome) | {"report": str(outcome.report)} for outcome in found])
        return
    if not found:
        err.print(f"no finished runs in {runs}; `tunetrial demo` makes one")
        return
    printing.outcomes(out, found)


@app.command(epilog="Example: `tunetrial schema > trial.schema.json`")
def schema(
    study: Annotated[bool, typer.Option("--retrieval", help="Of a study of retrieval, instead of a trial.")] = False,
) -> None:
    """Print the JSON schema of a spec, for editors that complete and check YAML."""
    from flows.spec import Spec  # noqa: PLC0415
    from flows.study_spec import StudySpec  # noqa: PLC0415

    printing.as_json((StudySpec if study else Spec).model_json_schema())


app.command(epilog="Example: `tunetrial gate my-trial.yaml --junit gate.xml --markdown summary.md`")(gate)
app.command(epilog="Example: `tunetrial calibrate quickstart-3f2a10 --labels labels.csv`")(calibrate)
app.command(epilog="Example: `tunetrial compare quickstart-3f2a10 quickstart-9c01de`")(compare)
app.command(epilog="Examples: `tunetrial plan quickstart-3f2a10`, `tunetrial plan --sd item=0.8,run=0.5 --judge-runs 3`")(plan)


def _run_folders(runs: Path) -> Iterator[Path]:
    if runs.is_dir():
        yield from (folder for folder in sorted(runs.iterdir()) if folder.is_dir())
