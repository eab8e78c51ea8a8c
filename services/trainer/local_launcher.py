"""Jobs as processes of this machine, each in a process group of its own. Knows no queue and no recipe.

A job and the service are joined by a socket: events come over it, and its end is the end of the other side, however that came about.
On Linux without CUDA jobs are forked from a warm process (see `warm.py`), which saves each the seconds that loading the libraries takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import structlog

from services.trainer.domain import Event, Exited, Order, Started
from services.trainer.job import LOG_FILE, ORDER_FILE
from services.trainer.records import EVENT, ORDER
from services.trainer.spec import TrainingSpec

_log = structlog.get_logger()

_ROOT = Path(__file__).resolve().parents[2]
# A job sees these of the service's environment and nothing else: tokens and keys of the service are none of its business.
_PASSED = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "XDG_CACHE_HOME",
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
    "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
)  # fmt: skip
_LOG_LINES = 5
_LINE_BYTES = 2**20


def cuda_present() -> bool:
    """Whether this machine shows an NVIDIA device. The training process itself asks CUDA."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def job_environment(environment: Mapping[str, str], threads: int, processes: int = 1, more: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment of a training process; variables whose names begin with one of `more` are passed on too."""
    passed = {name: value for name, value in environment.items() if name in _PASSED or (more and name.startswith(more))}
    devices = passed["CUDA_VISIBLE_DEVICES"].split(",") if "CUDA_VISIBLE_DEVICES" in passed else [str(n) for n in range(processes)]
    return {
        **passed,
        "PYTHONPATH": str(_ROOT),
        "PYTHONUNBUFFERED": "1",
        # The order in which sets are gone through must not differ between two runs of one job.
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        # The log is for what went wrong, not for what a library will rename one day.
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # A device for each process.
        "CUDA_VISIBLE_DEVICES": ",".join(devices[:processes]),
        # Needed by the warm process: pyarrow must start no thread, and asking for CUDA must not start CUDA.
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }


class LocalLauncher:
    """Starts jobs here. Needs to be closed."""

    def __init__(
        self, jobs_dir: Path, threads: int, processes: int, warm: bool, cancel_grace_s: float, variables: tuple[str, ...] = ()
    ) -> None:
        """`variables` are beginnings of names of variables that jobs see beside the usual ones."""
        self._jobs_dir, self._processes, self._grace_s = jobs_dir.resolve(), processes, cancel_grace_s
        self._environment = job_environment(os.environ, threads, processes, variables)
        self._cuda = cuda_present()
        forks = warm and processes == 1 and sys.platform == "linux" and not self._cuda
        self._warm = _WarmProcess(self._environment, self._jobs_dir / "warm.txt") if forks else None

    @property
    def has_cuda(self) -> bool:
        """Whether jobs find a CUDA device."""
        return self._cuda

    @property
    def processes(self) -> int:
        """How many share the batch of a job."""
        return self._processes

    def takes_slot(self, spec: TrainingSpec) -> bool:
        """Every process needs its place."""
        return True

    async def launch(self, order: Order) -> LocalRun:
        """Starts a job in a fresh folder. May be cancelled. Raises OSError."""
        folder = self._jobs_dir / order.job_id
        # What an interrupted attempt said must not be mistaken for this one's words; its checkpoints lie elsewhere.
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / ORDER_FILE).write_bytes(ORDER.dump_json(order, indent=1))
        ours, theirs = socket.socketpair()
        process = None
        try:
            with theirs:
                if self._warm is None or not await self._warm.fork(folder, theirs):
                    process = await self._start(folder, theirs)
            return LocalRun(*await asyncio.open_connection(sock=ours, limit=_LINE_BYTES), folder, self._grace_s, process)
        except BaseException:
            # Without its socket a process that was started all the same ends by itself.
            ours.close()
            raise

    async def _start(self, folder: Path, channel: socket.socket) -> asyncio.subprocess.Process:
        alone = ("-m", "services.trainer.job", str(folder))
        together = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self._processes), *alone)
        with (folder / LOG_FILE).open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, *(alone if self._processes == 1 else together)),
                stdin=channel.fileno(), stdout=log, stderr=log, env=self._environment, cwd=_ROOT, start_new_session=True,
            )  # fmt: skip

    def drop(self, job_id: str) -> None:
        """Nothing to do: no process outlives its service."""

    async def close(self) -> None:
        """Ends the warm process. Jobs are not touched: stop them before."""
        if self._warm is not None:
            await self._warm.close()


class LocalRun:
    """One training process. `process` is None for one that was forked from the warm process, which then tells how it ended."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        folder: Path,
        grace_s: float,
        process: asyncio.subprocess.Process | None,
    ) -> None:
        self._reader, self._writer, self._folder, self._grace_s, self._process = reader, writer, folder, grace_s, process
        self._pid = process.pid if process else None
        self._gone = asyncio.Event()

    async def events(self) -> AsyncIterator[Event]:
        """What happens, in order; the last is Exited. To be read once."""
        code = None
        async for event in self._told():
            if isinstance(event, Started) and self._process is None:
                self._pid = event.pid
            if isinstance(event, Exited):
                code = event.code
            else:
                yield event
        self._writer.close()
        if self._process is not None:
            code = await self._process.wait()
        self._gone.set()
        yield Exited(code, _last_lines(self._folder / LOG_FILE))

    async def _told(self) -> AsyncIterator[Event]:
        while True:
            try:
                line = await self._reader.readline()
            except ConnectionError:
                return
            # A line without an end was cut off by the end of the process.
            if not line.endswith(b"\n"):
                return
            yield EVENT.validate_json(line)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL, to the whole process group; returns when it is gone. `events` must be read meanwhile."""
        if self._pid is None:
            # It has not begun: without its socket it ends as soon as it looks.
            self._writer.close()
            await self._gone.wait()
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._pid, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), self._grace_s)
                return
            # Those that torchrun started are in groups of their own; they end with this.
            self._writer.close()
        await self._gone.wait()

    async def leave(self) -> None:
        """The same: without its service it would end anyway, and it goes on from its checkpoint."""
        await self.stop()


class _WarmProcess:
    """The process that jobs are forked from; started at the first job, started again when it died."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._environment, self._log = environment, log
        self._opening: asyncio.Task[socket.socket | None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def fork(self, folder: Path, channel: socket.socket) -> bool:
        """Forks a job; False where this machine allows none, or the process cannot be started. May be cancelled."""
        for _ in range(2):
            opening = self._opening = self._opening or asyncio.create_task(self._open())
            # Shielded: a job that is cancelled while it waits must not end what the next one needs.
            control = await asyncio.shield(opening)
            if control is None:
                return False
            try:
                socket.send_fds(control, [os.fsencode(folder)], [channel.fileno()])
            except OSError:
                # It died. Unless another job saw that before and started it anew, the next round does.
                if self._opening is opening:
                    await self.close()
            else:
                return True
        return False

    async def _open(self) -> socket.socket | None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.trainer.warm"),
                stdin=theirs.fileno(), stdout=log, stderr=log, env=dict(self._environment), cwd=_ROOT, start_new_session=True,
            )  # fmt: skip
        ours.setblocking(False)
        answer = b""
        try:
            with contextlib.suppress(ConnectionError):
                answer = await asyncio.get_running_loop().sock_recv(ours, 4096)
        finally:
            if answer != b"ready":
                ours.close()
        if answer == b"ready":
            return ours
        why = answer.decode() or _last_lines(self._log)
        _log.warning("no warm start: each job loads the libraries itself", reason=why)
        return None

    async def close(self) -> None:
        """Ends it; jobs that it forked go on."""
        opening, process = self._opening, self._process
        self._opening = self._process = None
        if opening is not None:
            opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                control = await opening
                if control is not None:
                    control.close()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _last_lines(log: Path) -> str:
    try:
        text = log.read_text(encoding="utf-8", errors="replace")[-20_000:]
    except OSError:
        return ""
    lines = [line.strip()[:300] for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-_LOG_LINES:])
