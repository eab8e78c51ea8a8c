"""The training process: `python -m services.trainer.job JOB_FOLDER`, or forked from the warm process, or one of several that torchrun
starts. Trains what order.json says.

Standard input is a socket to the service: events go out as JSON lines, and when the service is gone, however it went, input ends and so
does the process. Knows no queue and no database.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services.trainer.domain import Adapter, Event, Failed, Interrupted, Order, Started
from services.trainer.failures import words_of_error
from services.trainer.records import EVENT, ORDER

RECIPES = {
    "sft": "services.trainer.recipes.sft",
    "full": "services.trainer.recipes.full",
    "dpo": "services.trainer.recipes.dpo",
    "prompt_tuning": "services.trainer.recipes.prompt_tuning",
}
"""Module of each method; it has `train(order, report)`. Named, not imported: that takes seconds, in which the service's end must be seen
already."""

SUCCEEDED, FAILED, ORPHANED, INTERRUPTED = 0, 1, 3, 4
"""Exit codes; what a failed job says of why, and that it was interrupted, are events too."""

ORDER_FILE = "order.json"
LOG_FILE = "log.txt"
"""Files of a job's folder."""

_Train = Callable[[Order, Callable[[Event], None]], Adapter | None]


def main(folder: Path) -> int:
    """Trains; the exit code."""
    service = socket.socket(fileno=os.dup(0))
    threading.Thread(target=_end_with, args=(service,), daemon=True).start()
    report = speaker(lambda event: service.sendall(EVENT.dump_json(event) + b"\n"))

    def end(_number: int, _frame: Any) -> None:
        report(Interrupted())
        os._exit(INTERRUPTED)

    # While it trains the recipe heeds it, and saves where it stands; before and after there is nothing to save.
    signal.signal(signal.SIGTERM, end)
    return attempt(folder / ORDER_FILE, report)


def leads() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def speaker(send: Callable[[Event], None]) -> Callable[[Event], None]:
    """`send`, as far as this process speaks: one of several does for all; why one cannot go on, each says for itself."""

    def report(event: Event) -> None:
        if leads() or isinstance(event, Failed):
            send(event)

    return report


def attempt(order_file: Path, report: Callable[[Event], None]) -> int:
    """Does what an order says, from where an earlier attempt was interrupted; the exit code.

    Reports Failed with words for people when it cannot, and Interrupted when the process was told to end.
    """
    report(Started(os.getpid()))
    try:
        order = ORDER.validate_json(order_file.read_bytes())
        if order.store is not None and _published_before(order, report):
            return SUCCEEDED
        train: _Train = importlib.import_module(RECIPES[order.spec.method.kind]).train
        train(order, report)
    except InterruptedError:
        report(Interrupted())
        return INTERRUPTED
    except Exception as error:  # whatever it is, the job's owner must read why
        traceback.print_exc()
        report(Failed(words_of_error(error)))
        return FAILED
    return SUCCEEDED


def _published_before(order: Order, report: Callable[[Event], None]) -> bool:
    # Its libraries take a moment, in which the service's end must be seen already.
    from services.trainer import publishing  # noqa: PLC0415

    return publishing.resume(order, report, leads())


def _end_with(service: socket.socket) -> None:
    """Ends the process when the service is gone: nobody waits for the result, and a service that comes back starts the job anew."""
    try:
        while service.recv(1024):
            pass
    finally:
        os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
