"""The training process of a pod: `python -m services.trainer.pod ORDER_FILE`, in as many processes as torchrun starts it.

Events are lines of the log, each behind a mark, beside whatever libraries write there. When the service goes it trains on: a service that
comes back reads the log from its start. Knows no Kubernetes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

from services.common.errors import TunetrialError
from services.trainer.domain import Event
from services.trainer.job import FAILED, SUCCEEDED, attempt, leads, speaker
from services.trainer.publishing import adapters_of
from services.trainer.records import EVENT, ORDER

FAILED_CODE = 42
"""Exit code of a process that reported Failed: another pod would end the same way. 1 is what any process that broke down ends with."""
ENDED_CODE = 128 + signal.SIGTERM
"""Exit code of a process that was told to end before it had begun to train."""

_MARK = "tunetrial-event: "


def main(order_file: Path) -> int:
    """Trains; the exit code."""
    # The first process of a container ignores every signal that it does not handle. While it trains, the recipe handles this one.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(ENDED_CODE))
    if _is_done(order_file):
        return SUCCEEDED
    code = attempt(order_file, speaker(_write))
    return FAILED_CODE if code == FAILED else code


def _write(event: Event) -> None:
    sys.stdout.flush()
    # In one go, so that no other process writes in between.
    os.write(1, f"{_MARK}{EVENT.dump_json(event).decode()}\n".encode())


def _is_done(order_file: Path) -> bool:
    """Whether an earlier pod of the job published before it was ended; what it left half-made is removed."""
    # An order that cannot be read, or a store that is away, is the attempt's to report.
    with contextlib.suppress(OSError, ValueError, TunetrialError):
        order = ORDER.validate_json(order_file.read_bytes())
        adapters = adapters_of(order)
        if adapters.published(order.spec.adapter_name, order.job_id) is not None:
            return True
        if leads():
            adapters.discard_partial(order.job_id)
    return False


def event_in(line: str) -> Event | None:
    """The event that a line of the log tells, None for any other line."""
    _, mark, told = line.partition(_MARK)
    try:
        return EVENT.validate_json(told) if mark else None
    except ValueError:
        return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
