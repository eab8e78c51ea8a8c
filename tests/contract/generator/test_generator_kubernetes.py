"""Adapters that come to TGI by new pods: with the start list of the workload, and back when they do not work."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from generator_parts import until
from kubernetes_server import Cluster, running
from tgi_server import Start, TgiServer, serving

from services.common.errors import FailedPrecondition, NotFound, Unavailable
from services.generator.catalog import Catalog
from services.generator.domain import Decoding, State
from services.generator.engine_settings import KubernetesSettings, TgiSettings
from services.generator.generator import Call, Generator, Manner, Text
from services.generator.kubernetes_rollout import KubernetesRollout
from services.generator.sqlalchemy_models import SqlAlchemyModels
from services.generator.tgi_engine import TgiEngine
from services.generator.transformers_engine import TransformersEngine

LISTED = {"ada.1": "ada.1", "bob/2": "bob/2"}
GIVEN = "ada.1=/a,bob/2=/b"


@dataclass
class Place:
    cluster: Cluster
    catalog: Catalog
    servers: tuple[TgiServer, ...]
    adapters: dict[str, Path]
    broken: set[str] = field(default_factory=set)
    """Adapters with which TGI does not start."""
    idle: set[str] = field(default_factory=set)
    """Adapters that TGI takes and does not apply."""

    async def start(self, start_list: dict[str, str]) -> bool:
        listed = {name: None if name in self.idle else name for name in start_list}
        ready = not self.broken & set(start_list)
        for server in self.servers if ready else self.servers[1:]:
            await server.restart(replace(server.start, adapters=listed))
            if not ready:
                await server.stop()
        return ready

    async def load(self, name: str) -> State | None:
        return (await self.catalog.load(name, str(self.adapters[name]), "")).state

    async def ask(self, name: str) -> str:
        call = Call(name, "who built it?", Decoding(max_tokens=12))
        (found,) = [piece async for piece in Generator(self.catalog, None, 200).generate(call, Manner("me"))]
        assert isinstance(found, Text)
        return found.generation.text


Open = Callable[..., contextlib.AbstractAsyncContextManager[Place]]


@pytest.fixture
def opened(base: Path, adapters: dict[str, Path], engine: TransformersEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    @contextlib.asynccontextmanager
    async def open_(kind: str = "StatefulSet", *, settings: dict[str, Any] | None = None) -> AsyncIterator[Place]:
        async def pods(start_list: dict[str, str]) -> bool:
            return await place.start(start_list)

        cluster = Cluster(kind, pods)
        given = {"kind": kind, "name": "small", "namespace": "models", "container": "tgi", "timeout_s": 1.0, **(settings or {})}
        async with serving(engine, Start(LISTED), Start(LISTED)) as servers, running(cluster, tmp_path) as kubeconfig:
            monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
            urls = tuple(server.url for server in servers)
            tgi_settings = TgiSettings(engine="tgi", urls=urls, source=str(base), adapters=tuple(LISTED))
            tgi = TgiEngine("tiny", tgi_settings, KubernetesRollout(KubernetesSettings(**given), poll_s=0.02))
            roots = f"{base.parent.parent}:{tmp_path}"
            catalog = Catalog({"tiny": tgi}, SqlAlchemyModels(tmp_path / "data"), uri_roots=roots, tolerance=0.05, queue_limit=2)
            place = Place(cluster, catalog, tuple(servers), adapters)
            await catalog.prepare(0.05)
            yield place
            await catalog.close()

    return open_


KINDS = pytest.mark.parametrize("kind", ["StatefulSet", "Deployment"])


@KINDS
async def test_an_adapter_comes_by_new_pods_and_goes_by_new_ones(opened: Open, kind: str) -> None:
    async with opened(kind) as place:
        await place.load("ada.1")
        place.cluster.conflicts = 2
        before = [await place.ask(name) for name in ("tiny", "ada.1")]
        assert place.cluster.start_list == GIVEN
        assert await place.load("cyd") is State.VERIFIED
        assert place.cluster.start_list == f"{GIVEN},cyd={place.adapters['cyd']}"
        assert {"name": "PORT", "value": "80"} in place.cluster.environment
        assert await place.ask("cyd") not in before
        # Another adapter goes on once it is proven on the new pods.
        await until(lambda: {model.name: model.state for model in place.catalog.models()}["ada.1"] is State.VERIFIED)
        patches = place.cluster.asked.count(("PATCH", f"/apis/apps/v1/namespaces/models/{kind.lower()}s/small"))
        assert patches == 3
        await place.catalog.unload("cyd")
        assert place.cluster.start_list == GIVEN
        assert await place.ask("tiny") == before[0]


@KINDS
async def test_an_adapter_with_which_pods_do_not_start_is_taken_back(opened: Open, kind: str) -> None:
    async with opened(kind) as place:
        place.broken = {"cyd"}
        with pytest.raises(FailedPrecondition, match="small-1: CrashLoopBackOff back-off 10s") as failed:
            await place.load("cyd")
        assert failed.value.reason == "ENGINE_ROLLOUT_FAILED"
        assert place.cluster.start_list == GIVEN
        assert await place.ask("tiny")
        with pytest.raises(NotFound):
            await place.ask("cyd")
        # Nothing of it stays in the way.
        place.broken = set()
        assert await place.load("cyd") is State.VERIFIED


async def test_a_workload_without_a_list_gets_one_and_is_left_without_one(opened: Open) -> None:
    async with opened() as place:
        place.cluster.environment.pop()
        assert await place.load("cyd") is State.VERIFIED
        assert place.cluster.start_list == f"cyd={place.adapters['cyd']}"
        await place.catalog.unload("cyd")
        assert place.cluster.start_list == "unset"
        assert await place.ask("tiny")


async def test_what_others_list_meanwhile_stays_when_an_adapter_is_taken_back(opened: Open) -> None:
    async with opened(settings={"timeout_s": 30.0}) as place:
        place.broken = {"cyd"}
        loading = asyncio.create_task(place.load("cyd"))
        await until(lambda: bool(place.cluster.stuck))
        place.cluster.environment[-1]["value"] += ",dan=/d"
        metadata = place.cluster.workload["metadata"]
        metadata["resourceVersion"] = str(int(metadata["resourceVersion"]) + 1)
        # Who asked goes: the list is put back all the same.
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert place.cluster.start_list == f"{GIVEN},dan=/d"
        with pytest.raises(NotFound):
            await place.ask("cyd")
        place.broken = set()
        await until(lambda: not place.cluster.stuck)


async def test_an_api_that_is_away_for_a_moment_undoes_nothing(opened: Open) -> None:
    async with opened() as place:
        # The first look, the read and the patch; then every other look at the pods fails.
        place.cluster.faults = [False, False, False, True, True, False, True]
        assert await place.load("cyd") is State.VERIFIED
        assert place.cluster.faults == []


async def test_an_adapter_that_pods_cannot_start_with_any_more_can_be_unloaded(opened: Open) -> None:
    async with opened() as place:
        await place.load("cyd")
        place.broken = {"cyd"}
        # All pods are started anew, as on other nodes, and one does not come back.
        place.cluster.stuck = "small-1"
        place.cluster._tell(ready=False)
        await place.catalog.unload("cyd")
        assert place.cluster.start_list == GIVEN
        assert ("DELETE", "/api/v1/namespaces/models/pods/small-1") in place.cluster.asked


async def test_an_adapter_that_is_not_applied_leaves_the_start_list(opened: Open) -> None:
    async with opened() as place:
        place.idle = {"cyd"}
        with pytest.raises(FailedPrecondition) as failed:
            await place.load("cyd")
        assert failed.value.reason == "ADAPTER_CHANGES_NOTHING"
        assert place.cluster.start_list == GIVEN


async def test_an_adapter_that_the_workload_lists_already_needs_no_new_pods(opened: Open) -> None:
    async with opened() as place:
        await place.load("cyd")
    place.cluster.asked.clear()
    # As a generator that was started anew: its own settings name the first two only.
    async with opened() as again:
        again.cluster.workload = place.cluster.workload
        for server in again.servers:
            await server.restart(replace(server.start, adapters={**LISTED, "cyd": "cyd"}))
        await until(lambda: any(model.name == "cyd" and model.state is State.VERIFIED for model in again.catalog.models()))
        assert not [path for verb, path in again.cluster.asked if verb == "PATCH"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda cluster: cluster.environment.__setitem__(1, {"name": "LORA_ADAPTERS", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}),
            "elsewhere",
        ),
        (
            lambda cluster: cluster.workload["spec"]["template"]["spec"]["containers"][1].update(args=["--lora-adapters=a"]),
            "--lora-adapters",
        ),
        (lambda cluster: cluster.workload["spec"].update(replicas=0), "no replica"),
        (lambda cluster: cluster.workload["spec"]["updateStrategy"].update(type="OnDelete"), "leaves old pods"),
        (lambda cluster: cluster.workload["spec"]["updateStrategy"].update(rollingUpdate={"partition": 1}), "leaves old pods"),
        (lambda cluster: setattr(cluster, "denied", True), "service account may not"),
        (lambda cluster: setattr(cluster, "conflicts", 99), "again and again"),
    ],
)
async def test_what_keeps_a_workload_from_being_changed_is_said(opened: Open, change: Callable[[Cluster], Any], why: str) -> None:
    async with opened() as place:
        change(place.cluster)
        with pytest.raises(FailedPrecondition, match=why) as failed:
            await place.load("cyd")
        assert failed.value.reason == "ENGINE_ROLLOUT_FAILED"
        assert await place.ask("tiny")


async def test_a_workload_or_a_container_that_is_not_there_is_said(opened: Open) -> None:
    for settings, why in (({"name": "other"}, "not there"), ({"container": "other"}, "no container other")):
        async with opened(settings=settings) as place:
            with pytest.raises(FailedPrecondition, match=why):
                await place.load("cyd")


async def test_a_cluster_that_does_not_answer_is_away(opened: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with opened() as place:
        away = tmp_path / "away"
        away.write_text(re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1", (tmp_path / "kubeconfig").read_text()))
        monkeypatch.setenv("KUBECONFIG", str(away))
        with pytest.raises(Unavailable) as failed:
            await place.load("cyd")
        assert failed.value.reason == "KUBERNETES_UNAVAILABLE"
