"""A process with the training libraries loaded, from which jobs are forked in milliseconds: `python -m services.trainer.warm`.

Forking is sound only while the process has one thread and never touched CUDA; it checks both and else refuses, saying why. It never trains
itself. Standard input is a socket of whole messages to the launcher: out goes `ready` or `refused: ...`, once; in comes the folder of a job
with the job's own socket.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
from pathlib import Path

from services.trainer import job
from services.trainer.domain import Exited
from services.trainer.records import EVENT


def main() -> int:
    """Serves until the launcher closes the socket."""
    control = socket.socket(fileno=os.dup(0))
    for module in job.RECIPES.values():
        importlib.import_module(module)
    reason = _unsound()
    control.sendall(f"refused: {reason}".encode() if reason else b"ready")
    if reason:
        return 1
    # What is loaded now stays: the collector must not touch, and so copy, the pages that all jobs share.
    gc.collect()
    gc.freeze()
    waker, woken = socket.socketpair()
    waker.setblocking(False)
    woken.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(waker.fileno())
    jobs: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([control, woken], [], [])
        if woken in ready:
            woken.recv(1024)
            _reap(jobs)
        if control in ready:
            message, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
            if not message:
                return 0
            channel = socket.socket(fileno=descriptors[0])
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (control, waker, woken, *jobs.values()):
                    other.close()
                _become_job(Path(message.decode()), channel)
            jobs[pid] = channel


def _unsound() -> str:
    import torch  # noqa: PLC0415  loaded by the recipes above

    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        return f"{threads} threads are running"
    return "CUDA is in use here" if torch.cuda.is_available() else ""


def _reap(jobs: dict[int, socket.socket]) -> None:
    while jobs:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        # An error means that the service is gone, or let this job go: nobody asks.
        with jobs.pop(pid) as channel, contextlib.suppress(OSError):
            channel.sendall(EVENT.dump_json(Exited(os.waitstatus_to_exitcode(status))) + b"\n")


def _become_job(folder: Path, channel: socket.socket) -> None:
    """In the child: takes the place of `python -m services.trainer.job`; does not return."""
    code = 1
    try:
        os.setsid()
        os.dup2(channel.fileno(), 0)
        channel.close()
        log = os.open(folder / job.LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        code = job.main(folder)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
