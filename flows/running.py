"""Runs a trial for a command: what is finished is read, the rest is done by the flow. Being stopped becomes words and an exit code."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from flows import printing
from flows.errors import TrialError

if TYPE_CHECKING:
    from flows.outcome import Outcome

Result = TypeVar("Result")


class Stopped(TrialError):
    """The command was stopped from outside."""

    def __init__(self, how: str, exit_code: int) -> None:
        super().__init__(f"{how}; run the same command again to go on where it was")
        self.exit_code = exit_code


def run_trial(spec: Path, home: Path, runs: Path, console: Console, *, quiet: bool) -> tuple[Outcome, bool]:
    """How the trial of this spec ends, and whether it was finished before: then nothing is computed. Progress goes to `console`."""
    from flows.outcome import read, run_folder  # noqa: PLC0415  commands import what they need, so that --help is quick
    from flows.progress import Silent  # noqa: PLC0415
    from flows.spec_file import load  # noqa: PLC0415
    from flows.trial import open_trial  # noqa: PLC0415

    home, runs = home.resolve(), runs.resolve()
    trial = open_trial(load(spec), home, Silent())
    key = trial.run_key()
    known = read(run_folder(runs, trial.spec.name, key))
    finished = known if known is not None and known.key == key and known.report.is_file() else None
    if finished is not None and trial.spec.promote and finished.gate == "pass" and not finished.promoted:
        finished = None  # all but the alias is done
    outcome = finished or _run_flow(trial.spec.name, trial.loaded.path, home, runs, console, quiet=quiet)
    return outcome, finished is not None


def _run_flow(name: str, spec: Path, home: Path, runs: Path, console: Console, *, quiet: bool) -> Outcome:
    from flows.clients import addresses_from_environment  # noqa: PLC0415
    from flows.local_stack import Busy, is_busy, running_stack  # noqa: PLC0415
    from flows.prefect_api import local_api  # noqa: PLC0415

    if is_busy(home) and not (addresses_from_environment() or running_stack(home)):
        # Said at once, before anything is started.
        raise Busy(home)
    with interruptible(), printing.listener(console, quiet=quiet) as listener, local_api(home, listener.say) as wait_for_api:
        from prefect.exceptions import TerminationSignal  # noqa: PLC0415  Prefect reads its environment when imported

        from flows.experiment import LISTENER, experiment  # noqa: PLC0415

        wait_for_api()

        async def work() -> Outcome:
            LISTENER.set(listener)
            return await experiment(name, str(spec), str(home), str(runs))

        try:
            return wait_for(work())
        except TerminationSignal:
            raise Stopped("asked to end by SIGTERM", 143) from None


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C ends the command with exit code 130 and says that it can go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped("stopped", 130) from None


def wait_for(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of asynchronous work, which Ctrl-C may end."""
    with interruptible():
        return asyncio.run(work)
