"""The four services as child processes on loopback, for a laptop. Knows the services by the names of their modules only.

A child stops when its parent is gone, however it went: standard input is a pipe that the parent holds. `tunetrial up` leaves a stack
running and writes `stack.json`; a run that finds it uses it instead of starting its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from flows.clients import SERVICES, Clients, ServiceError
from flows.errors import TrialError, UserError

_START_S = 600.0
# A service that dies this often is not going to recover by being started again.
_RESTARTS = 5


class ServiceDied(TrialError):
    """A service's process ended on its own. The same stage can be tried again: the stack starts it anew."""


class Busy(UserError):
    """Another process uses the local services of this home."""

    def __init__(self, home: Path) -> None:
        super().__init__(
            f"another trial is at work in {home}. Wait for it, start `tunetrial up` so that trials share its services, "
            "or give this one a folder of its own with --home"
        )


class LocalStack:
    """Starts all `services` at the first need and stops them at the end; each is waited for only when it is first used."""

    def __init__(
        self,
        home: Path,
        models: Mapping[str, str],
        roots: tuple[Path, ...],
        abstentions: tuple[str, ...] = (),
        services: tuple[str, ...] = SERVICES,
        engines: Mapping[str, Mapping[str, Any]] | None = None,
        hosted: Mapping[str, Any] | None = None,
    ) -> None:
        """`models` are bases by name, `engines` settings of models elsewhere, as TUNETRIAL_ENGINES has them: a base that the environment
        names there is served by that engine, and not in the generator's own process. `hosted` says where a provider trains.
        """
        self._engines, self._hosted = engines or {}, hosted
        self._home, self._models, self._roots, self._abstentions, self._services = home, models, roots, abstentions, services
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}
        self._ready: set[str] = set()
        self._deaths: dict[str, int] = {}
        self._lock: IO[str] | None = None
        self._starting = asyncio.Lock()

    @property
    def started(self) -> bool:
        """Whether the processes are there, ready or not."""
        return bool(self._children)

    async def address(self, service: str) -> str:
        """Address of the service once it says that it can work. Raises TrialError with the end of its log when it does not get there."""
        async with self._starting:
            if not self._children:
                self._take_lock()
                self._ports = _free_ports()
                for name in self._services:
                    self._start(name)
            elif self._children[service].poll() is not None:
                self._restart(service)
        address = f"127.0.0.1:{self._ports[service]}"
        if service not in self._ready:
            await self._wait_until_serving(service, address)
            self._ready.add(service)
        return address

    async def start(self) -> dict[str, str]:
        """All services, ready."""
        return {service: await self.address(service) for service in self._services}

    def check(self, service: str) -> None:
        """Raises ServiceDied when the service's process has ended."""
        child = self._children.get(service)
        if child is not None and child.poll() is not None:
            raise ServiceDied(self._death(service, child.returncode))

    def stop(self) -> None:
        """Drains and stops all services; those that do not stop in 15 s are killed."""
        for child in self._children.values():
            if child.stdin:
                child.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
        for child in self._children.values():
            try:
                child.wait(timeout=15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._children.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        self._home.mkdir(parents=True, exist_ok=True)
        lock = (self._home / "lock").open("a")
        if not _lock(lock):
            lock.close()
            raise Busy(self._home)
        self._lock = lock

    def _restart(self, service: str) -> None:
        self._deaths[service] = self._deaths.get(service, 0) + 1
        if self._deaths[service] > _RESTARTS:
            self.check(service)
        self._ready.discard(service)
        self._start(service)

    def _start(self, service: str) -> None:
        folder = self._home / service
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log").open("ab") as log:
            self._children[service] = subprocess.Popen(
                [sys.executable, "-m", f"services.{service}"],
                env=self._environment(service, folder),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (folder / "pid").write_text(str(self._children[service].pid), encoding="ascii")

    def _environment(self, service: str, folder: Path) -> dict[str, str]:
        own = {
            "TUNETRIAL_HOST": "127.0.0.1",
            "TUNETRIAL_PORT": str(self._ports[service]),
            "TUNETRIAL_STOP_WITH_STDIN": "true",
            "TUNETRIAL_DATA_DIR": str(folder / "data"),
            "TUNETRIAL_URI_ROOTS": ":".join(str(root) for root in (self._home, *self._roots)),
            "TUNETRIAL_DRAIN_S": "3",
            "TUNETRIAL_THREADS": "1",
            # Busy-waiting threads of one process would take the cores from the others.
            "OMP_WAIT_POLICY": "passive",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        if service == "generator":
            elsewhere = _engines_of_environment()
            own["TUNETRIAL_MODELS"] = json.dumps({name: base for name, base in self._models.items() if name not in elsewhere})
            own["TUNETRIAL_ENGINES"] = json.dumps({**self._engines, **elsewhere})
            own["TUNETRIAL_ENGINES_FILE"] = ""
            # A trial loads what it asks; adapters of earlier ones would only take memory, and time at the start.
            own["TUNETRIAL_PUT_BACK"] = "aliased"
            own["TUNETRIAL_RETRIEVER_ADDRESS"] = f"127.0.0.1:{self._ports['retriever']}"
        if service == "trainer":
            own["TUNETRIAL_MODELS"] = json.dumps(self._models)
            if self._hosted and not os.environ.get("TUNETRIAL_HOSTED"):
                own["TUNETRIAL_HOSTED"] = json.dumps(self._hosted)
            # A training process has one thread: one for each core.
            own["TUNETRIAL_SLOTS"] = str(os.cpu_count() or 1)
        if service == "judge":
            own["TUNETRIAL_ABSTENTIONS"] = json.dumps(self._abstentions)
        return {**os.environ, **own}

    async def _wait_until_serving(self, service: str, address: str) -> None:
        clients = Clients({service: address})
        deadline = time.monotonic() + _START_S
        try:
            while True:
                self.check(service)
                with contextlib.suppress(ServiceError):
                    if await clients.serving(service):
                        return
                if time.monotonic() > deadline:
                    raise TrialError(f"the {service} was not ready after {_START_S:.0f} s. {self._end_of_log(service)}")
                await asyncio.sleep(0.1)
        finally:
            await clients.close()

    def _death(self, service: str, code: int) -> str:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        return f"the {service} {how}; run the same command again to go on where it stopped. {self._end_of_log(service)}"

    def _end_of_log(self, service: str) -> str:
        log = self._home / service / "log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:] if log.exists() else []
        tail = "\n".join(f"  | {line[:300]}" for line in lines)
        return f"The end of {log}:\n{tail}"


def _engines_of_environment() -> dict[str, Any]:
    given = {"TUNETRIAL_ENGINES": os.environ.get("TUNETRIAL_ENGINES") or "{}"}
    merged: dict[str, Any] = {}
    if file := os.environ.get("TUNETRIAL_ENGINES_FILE"):
        try:
            given["TUNETRIAL_ENGINES_FILE"] = Path(file).read_text(encoding="utf-8")
        except OSError as error:
            raise UserError(f"TUNETRIAL_ENGINES_FILE {file} cannot be read: {error.strerror}") from error
    for name, text in given.items():
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UserError(f"{name} is not JSON: {error}") from error
        if not isinstance(found, dict):
            raise UserError(f"{name} must be a JSON object: engines by the names of their base models")
        merged |= found
    return merged


def _free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        sockets = {service: stack.enter_context(socket.socket()) for service in SERVICES}
        for found in sockets.values():
            found.bind(("127.0.0.1", 0))
        return {service: int(found.getsockname()[1]) for service, found in sockets.items()}


def running_stack(home: Path) -> dict[str, str] | None:
    """Addresses of the stack that `tunetrial up` left running in this home; None when there is none."""
    try:
        stack = json.loads((home / "stack.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    # Where the lock is free, whoever wrote the file is gone.
    return dict(stack) if is_busy(home) else None


def is_busy(home: Path) -> bool:
    """Whether some process runs local services in this home."""
    if not (home / "lock").exists():
        return False
    with (home / "lock").open("a") as lock:
        return not _lock(lock)


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def announce(home: Path, addresses: Mapping[str, str]) -> Iterator[None]:
    """Tells later commands where the services of this process are, as long as it runs."""
    path = home / "stack.json"
    path.write_text(json.dumps(dict(addresses)), encoding="utf-8")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
