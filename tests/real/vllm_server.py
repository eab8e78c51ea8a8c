"""A real vLLM on the CPU, as a process that can be started, killed and started again on the same port."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import httpx

from tests.real.elastic_node import free_port
from tests.real.environments import python_of

_START_S = 800.0


class VllmServer:
    """One replica, serving `base` under `name` with room for adapters."""

    def __init__(
        self, base: Path, folder: Path, *, name: str = "small", rank: int = 8, slots: int = 16, threads: int = 1, seqs: int = 32
    ) -> None:
        """`rank` is the highest that it takes; its log lies in `folder`.

        `slots` must be more than the loads of adapters in its life: on a CPU, vLLM 0.32 gives rows of the base the adapter in the last
        slot, where another row of their batch wants an adapter. A slot is freed when it is needed, and not before.
        """
        self.port = free_port()
        self._log = folder / f"vllm-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(threads),
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        }
        self._command = (
            *(str(python_of("vllm")), "-m", "vllm.entrypoints.openai.api_server", "--model", str(base), "--served-model-name", name),
            *("--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"),
            *("--enable-lora", "--max-loras", str(slots), "--max-lora-rank", str(rank)),
            *("--max-num-seqs", str(seqs), "--max-logprobs", "21"),
        )

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def launch(self) -> None:
        """Starts the process."""
        assert self._process is None, "it runs already"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Returns once it answers; fails with the end of its log."""
        assert self._process is not None, "it does not run"
        deadline = time.monotonic() + _START_S
        while not self._healthy():
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-40:])
            assert self._process.poll() is None, f"vLLM ended with code {self._process.returncode}:\n{tail}"
            assert time.monotonic() < deadline, f"vLLM did not answer in {_START_S:.0f} s:\n{tail}"
            time.sleep(0.2)

    def start(self) -> None:
        """Starts it and waits for it."""
        self.launch()
        self.wait()

    def kill(self) -> None:
        """kill -9 of the server and its workers."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def adapters(self) -> set[str]:
        """What it says that it has."""
        models = httpx.get(f"{self.url}/v1/models", timeout=60).json()["data"]
        return {model["id"] for model in models if model["parent"]}

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=2).is_success
        except httpx.TransportError:
            return False
