"""Prefect's API for a trial on this machine, as a child process that ends with its parent. Knows no stage.

Prefect would start such a process itself, but that one outlives a parent that is killed. Whoever sets PREFECT_API_URL, of a server with its
UI, gets no child.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from flows.errors import TrialError

_START_S = 600.0
_SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_UI_ENABLED": "0",
    # No schedules here: none of the loops that serve them.
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}


@contextlib.contextmanager
def local_api(home: Path, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Sets PREFECT_API_URL for the block, and gives what waits until that API answers. Its files are in `home/prefect`.

    Prefect reads its settings when it is imported: enter before, and import before you wait, as both take seconds.
    """
    if os.environ.get("PREFECT_API_URL"):
        yield lambda: None
        return
    say("starting Prefect's local API")
    folder = home / "prefect"
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {"PREFECT_HOME": str(folder), **_SETTINGS}.items():
        os.environ.setdefault(name, value)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    with (folder / "log").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(port)], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    try:
        url = os.environ["PREFECT_API_URL"]
        yield lambda: _wait(child, url, folder / "log")
    finally:
        del os.environ["PREFECT_API_URL"]
        child.kill()
        child.wait()


def _wait(child: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        with contextlib.suppress(URLError, OSError), urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310  loopback
            if answer.status == 200:
                return
        if child.poll() is not None or time.monotonic() > deadline:
            end = "\n".join(f"  | {line[:200]}" for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-4:])
            raise TrialError(
                f"Prefect's local API did not start; set PREFECT_API_URL to a server that runs, or see {log}, which ends:\n{end}"
            )
        time.sleep(0.1)


def _serve(port: int) -> None:
    import uvicorn  # noqa: PLC0415  in the child only

    threading.Thread(target=_end_with_parent, daemon=True).start()
    uvicorn.run("prefect.server.api.server:create_app", factory=True, host="127.0.0.1", port=port, log_level="error", lifespan="on")


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
