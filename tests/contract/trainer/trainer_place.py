"""A launcher on a cluster, and its runs as lists of what is heard of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from trainer_cluster import NAMESPACE, Cluster, cluster_in

from services.trainer.domain import (
    DatasetReport,
    Event,
    Inputs,
    Order,
    Progress,
    Progressed,
)
from services.trainer.kubernetes_launcher import KubernetesLauncher
from services.trainer.kubernetes_run import KubernetesRun
from services.trainer.kubernetes_settings import KubernetesTraining
from services.trainer.spec import Lora, Optimization, SupervisedFineTuning, TrainingSpec

ID = "0123456789abcdef0123456789abcdef"
JOB = f"tunetrial-{ID}"
REPORT = DatasetReport(3, 0, 0, 30, 9)
SPEC = TrainingSpec("one", "base", "/data/in/d.jsonl", "", 1, SupervisedFineTuning(Lora.given(), Optimization.given()))
INPUTS = Inputs("/models/base", None, None, "b", "t", "/data/in/d.jsonl", "d", None, None)
THE_ORDER = Order(ID, SPEC, INPUTS, "w", "/data/adapters", "/data/checkpoints/w", 60.0, 2)
VOLUMES = [{"mount_path": "/data", "claim": "tunetrial"}, {"mount_path": "/models", "claim": "models", "read_only": True}]


def settings_of(**given: Any) -> KubernetesTraining:
    return KubernetesTraining.model_validate_json(json.dumps({"namespace": NAMESPACE, "image": "trainer:1", "volumes": VOLUMES} | given))


def step(number: int, checkpoint: int = 0) -> Progressed:
    return Progressed(Progress(step=number, step_count=10, checkpoint_step=checkpoint))


@dataclass
class Place:
    cluster: Cluster
    launcher: KubernetesLauncher
    folder: Path

    async def launch(self, order: Order = THE_ORDER) -> Heard:
        return Heard(await self.launcher.launch(order))

    @contextlib.asynccontextmanager
    async def restarted(self) -> AsyncIterator[KubernetesLauncher]:
        """Another service after this one."""
        self.launcher.leave()
        await self.launcher.close()
        launcher = KubernetesLauncher(self.launcher._settings, 1.0, poll_s=0.02)
        try:
            yield launcher
        finally:
            await launcher.close()


class Heard:
    """A run whose events are kept."""

    def __init__(self, run: KubernetesRun) -> None:
        self.run = run
        self.events: list[Event] = []
        self.task = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for event in self.run.events():
            self.events.append(event)

    async def until(self, *events: Event) -> None:
        async with asyncio.timeout(10):
            while self.events[-len(events) :] != list(events):
                assert not self.task.done(), self.events
                await asyncio.sleep(0.01)

    async def end(self) -> list[Event]:
        async with asyncio.timeout(20):
            await self.task
        return self.events


@contextlib.asynccontextmanager
async def opened(folder: Path, **given: Any) -> AsyncIterator[Place]:
    """A launcher with these settings on a cluster of its own."""
    async with cluster_in(folder) as (cluster, kubeconfig):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(kubeconfig))
            launcher = KubernetesLauncher(settings_of(**given), 1.0, poll_s=0.02)
            yield Place(cluster, launcher, folder)
            await launcher.close()


async def until(fits: Callable[[], object]) -> None:
    """Returns once it does. Raises TimeoutError after 10 s."""
    async with asyncio.timeout(10):
        while not fits():  # noqa: ASYNC110  what the server holds tells nobody
            await asyncio.sleep(0.01)
