"""The training process: `python -m services.trainer.job JOB_FOLDER`, or forked from the warm process. Trains what order.json says.

Standard input is a socket to the service: events go out as JSON lines, and when the service is gone, however it went, input ends and so
does the process. Knows no queue and no database.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from services.trainer.domain import Adapter, Event, Failed, Order, Started
from services.trainer.failures import words_of_error
from services.trainer.records import EVENT, ORDER

RECIPES = {"sft": "services.trainer.recipes.sft"}
"""Module of each method; it has `train(order, folder, report)`. Named, not imported: that takes seconds, in which the
service's end must be seen already."""

ORDER_FILE = "order.json"
LOG_FILE = "log.txt"
"""Files of a job's folder."""

_Train = Callable[[Order, Path, Callable[[Event], None]], Adapter]


def main(folder: Path) -> int:
    """Trains; the exit code. Reports Failed with words for people when it cannot."""
    service = socket.socket(fileno=os.dup(0))
    threading.Thread(target=_end_with, args=(service,), daemon=True).start()

    def report(event: Event) -> None:
        service.sendall(EVENT.dump_json(event) + b"\n")

    report(Started(os.getpid()))
    try:
        order = ORDER.validate_json((folder / ORDER_FILE).read_bytes())
        train: _Train = importlib.import_module(RECIPES[order.spec.method.kind]).train
        train(order, folder, report)
    except Exception as error:  # whatever it is, the job's owner must read why
        traceback.print_exc()
        report(Failed(words_of_error(error)))
        return 1
    return 0


def _end_with(service: socket.socket) -> None:
    """Ends the process when the service is gone: nobody waits for the result, and a service that comes back starts the job anew."""
    try:
        while service.recv(1024):
            pass
    finally:
        os._exit(3)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
