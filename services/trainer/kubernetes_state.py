"""What the API's answers say of a Job and its pods: begun, waiting and for what, ended and how. Pure functions; contacts nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from services.trainer.kubernetes_manifest import CONTAINER, INDEX, JOB_LABEL, MANAGED_BY, labels_of

# What a container says while all goes well.
_STARTING = frozenset(("ContainerCreating", "PodInitializing"))
_LINES = 5


@dataclass(frozen=True, slots=True)
class Wait:
    """Why nothing runs yet. One that is `stuck` ends by somebody's doing only, not when there is room."""

    words: str
    stuck: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """How a Job ended. `code` is that of the process to blame; None where none ended by itself."""

    succeeded: bool
    why: str = ""
    """The Job's own words, "" where it ended well."""
    code: int | None = None
    said: str = ""
    """The end of what the process to blame wrote."""
    evicted: str = ""
    """Why a pod was taken away."""

    @property
    def too_long(self) -> bool:
        """Whether it was ended for the time it took."""
        return self.why.startswith("DeadlineExceeded")


def is_ours(job: dict[str, Any], job_id: str) -> bool:
    """Whether a Job was made by a trainer for that job."""
    labels = job["metadata"].get("labels") or {}
    return {MANAGED_BY: labels.get(MANAGED_BY), JOB_LABEL: labels.get(JOB_LABEL)} == labels_of(job_id)


def pods_of(job: dict[str, Any], found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that the Job made, oldest first."""
    uid = job["metadata"]["uid"]
    owned = [pod for pod in found if any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences") or ())]
    return sorted(owned, key=lambda pod: pod["metadata"].get("creationTimestamp") or "")


def leads(pod: dict[str, Any]) -> bool:
    """Whether it speaks for its job: it is the first of the nodes, or the only one."""
    return _index(pod) == "0"


def has_begun(pod: dict[str, Any]) -> bool:
    """Whether its process was started, so that there is a log."""
    return bool({"running", "terminated"} & (_container(pod).get("state") or {}).keys())


def has_ended(pod: dict[str, Any]) -> bool:
    """Whether its log gets no longer."""
    return pod["status"].get("phase") in ("Succeeded", "Failed") or "terminated" in (_container(pod).get("state") or {})


def wait_of(job: dict[str, Any], pods: Sequence[dict[str, Any]], queue: str) -> Wait | None:
    """What the newest pod, or the Job, says it waits for; None when something runs or nothing says anything."""
    if (job.get("spec") or {}).get("suspend"):
        return Wait(f"Kueue has not let it in: queue {queue}" if queue else "it is suspended")
    for pod in reversed(pods):
        if has_ended(pod) or has_begun(pod):
            continue
        if (waiting := (_container(pod).get("state") or {}).get("waiting")) and waiting.get("reason") not in (None, *_STARTING):
            return Wait(f"its pod cannot start: {_words(waiting)}", stuck=True)
        for condition in pod["status"].get("conditions") or ():
            if (condition["type"], condition["status"]) == ("PodScheduled", "False"):
                return Wait(f"no node takes its pod: {_words(condition)}")
    return None


def end_of(job: dict[str, Any], pods: Sequence[dict[str, Any]]) -> End | None:
    """How it ended; None while it has not."""
    conditions = {one["type"]: one for one in (job.get("status") or {}).get("conditions") or () if one["status"] == "True"}
    if "Complete" in conditions:
        return End(succeeded=True)
    if "Failed" not in conditions:
        return None
    why = _words(conditions["Failed"])
    # Of each node the newest pod, for those before it were replaced; of these the first to fail, for it takes the others with it.
    newest = {_index(pod): pod for pod in pods}.values()
    failed = [state | {"pod": pod} for pod in newest if (state := _terminated(pod)).get("exitCode")]
    taken = next((pod["status"] for pod in newest if pod["status"].get("reason")), None)
    evicted = _words(taken) if taken is not None else ""
    if not failed:
        return End(succeeded=False, why=why, evicted=evicted)
    blamed = min(failed, key=lambda state: state.get("finishedAt") or "")
    return End(succeeded=False, why=why, code=blamed["exitCode"], said=blamed.get("message") or "", evicted=evicted)


def last_words(lines: Sequence[str]) -> str:
    """The end of a log as one line."""
    return " | ".join([short for line in lines if (short := line.strip()[:300])][-_LINES:])


def _container(pod: dict[str, Any]) -> dict[str, Any]:
    statuses = pod["status"].get("containerStatuses") or ()
    return next((status for status in statuses if status["name"] == CONTAINER), {})


def _terminated(pod: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (_container(pod).get("state") or {}).get("terminated") or {}
    return found


def _index(pod: dict[str, Any]) -> str:
    return str((pod["metadata"].get("annotations") or {}).get(INDEX, "0"))


def _words(said: dict[str, Any]) -> str:
    return f"{said.get('reason') or ''} {said.get('message') or ''}".strip()[:500]
