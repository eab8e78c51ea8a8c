"""The Role of docs/trainer.md: with it all goes well, as every other test here shows, and each right that is missing is named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from tunetrial.trainer.v1 import trainer_pb2

from tests.contract.trainer.test_trainer_service import LONG, Trainer
from tests.kubernetes.place import JOBS, NAMESPACE, Place, cancel, documented_role, until

pytestmark = pytest.mark.timeout(900)

RIGHTS = [
    (group, resource, verb)
    for rule in documented_role()["rules"]
    for group in rule["apiGroups"]
    for resource in rule["resources"]
    for verb in rule["verbs"]
]
MAY_BE_LEFT_OUT = ("", "events", "list")
TO_START = [("batch", "jobs", "create"), ("", "pods", "list"), ("", "services", "create")]
TO_FOLLOW = [("batch", "jobs", "get"), ("", "pods/log", "get")]
TO_END = [("batch", "jobs", "delete"), ("", "pods", "delete")]


def rule(group: str, resource: str, verb: str) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": [resource], "verbs": [verb]}


@pytest.fixture(scope="module")
async def pair(place: Place) -> AsyncIterator[Trainer]:
    """A trainer whose jobs take two nodes, for which all rights are needed."""
    async with place.trainer("rights", nodes=2, gpus=0, node_selector={}) as trainer:
        yield trainer


async def is_allowed(place: Place, group: str, resource: str, verb: str, *, wanted: bool) -> bool:
    """Whether the API server has seen that the trainer's account has a right now, or has it not."""
    kind, _, part = resource.partition("/")
    asked = {"namespace": NAMESPACE, "verb": verb, "group": group, "resource": kind, "subresource": part}
    review = {"spec": {"user": f"system:serviceaccount:{NAMESPACE}:trainer", "resourceAttributes": asked}}
    found = await place.api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(found["status"]["allowed"]) is wanted


def test_what_is_documented_is_what_is_tried_here() -> None:
    assert sorted(RIGHTS) == sorted([*TO_START, *TO_FOLLOW, *TO_END, MAY_BE_LEFT_OUT])


@pytest.mark.parametrize("missing", [*TO_START, *TO_FOLLOW, *TO_END], ids=lambda right: f"{right[2]} {right[1]}")
async def test_each_right_is_needed_and_named_where_it_is_missing(place: Place, pair: Trainer, missing: tuple[str, str, str]) -> None:
    _, resource, verb = missing
    words = f"Kubernetes does not let the trainer {verb} {resource} in namespace {NAMESPACE}"
    log = pair.root / "service.txt"
    before = len(log.read_text())
    await place.allow(*(rule(*right) for right in RIGHTS if right not in (missing, MAY_BE_LEFT_OUT)))
    await until(lambda: is_allowed(place, *missing, wanted=False))
    job = await pair.create(pair.spec(f"{verb}-{resource.replace('/', '-')}", max_steps=LONG))

    async def runs() -> bool:
        return any(pod["status"]["phase"] == "Running" for pod in await place.pods(job))

    async def named() -> bool:
        said = log.read_text()[before:]
        return words in said and "lacks that right (docs/trainer.md shows all)" in said

    if missing in TO_START:
        failed = await pair.end(job)
        assert failed.state == trainer_pb2.JOB_STATE_FAILED
        assert words in failed.error
    else:
        await until(named if missing in TO_FOLLOW else runs)
        assert (await cancel(pair, job)).state == trainer_pb2.JOB_STATE_CANCELLED
    await until(named)
    await place.allow(*documented_role()["rules"])
    await until(lambda: is_allowed(place, *missing, wanted=True))
    if resource == "jobs" and verb in ("get", "delete"):
        assert "a job cannot be deleted: delete it by hand" in log.read_text()[before:]
        await place.api.delete(f"{JOBS}/tunetrial-{job.id}", propagationPolicy="Foreground")
    await until(lambda: place.gone(job))
