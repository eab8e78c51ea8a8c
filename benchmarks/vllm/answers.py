"""Whole RAG answers a second: one Answer of our services against LangChain's chain and Haystack's pipeline, on the same two servers.

    python -m benchmarks.vllm.answers [--json] [--passages 5000] [--callers 32] [--rounds 5] [--size 96]

A real Elasticsearch 8.19 and a real vLLM with the quickstart's base on one thread; BM25, one passage shown (they have up to 700 tokens of
this base's 1,024), answers of at most 16 tokens, greedy. Retriever and generator are processes of their own, and so is every contestant.
All must bring the same texts, up to ties between passages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.elastic.contest import Round, Task
from benchmarks.elastic.corpus import Corpus
from benchmarks.elastic.filling import PREFIX, fill_haystack, fill_ours
from benchmarks.elastic.processes import contestant, elasticsearch, service
from benchmarks.elastic.search import TABLE
from benchmarks.vllm.processes import SHAPE, generator
from tests.real.vllm_server import VllmServer

OURS = "Answer over gRPC"
_INDEX = "answers"


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one contestant, medians over its rounds."""

    name: str
    per_s: float
    p50_ms: float
    cpu_ms: float
    """Of the contestant's process, for each answer; of ours the services' is not in it."""
    same: float
    """Share of its answers that were ours as well."""
    ratio: float
    """Our throughput to its, median of the ratios of single rounds."""
    ratio_from: float
    ratio_to: float


async def measure(given: argparse.Namespace, folder: Path, url: str, server: VllmServer) -> list[Figures]:
    """All figures, ours first."""
    task = Task(url, "", seed=7, passages=given.passages, k=1, callers=given.callers, llm=server.url)
    async with service(url, folder, TABLE, "7", "1") as filling:
        await fill_ours(filling, _INDEX, Corpus(7), given.passages)
    haystack = replace(task, index=f"haystack-{_INDEX}", way="tuned")
    await fill_haystack(url, haystack)
    async with AsyncExitStack() as stack:
        retriever = await stack.enter_async_context(service(url, folder, "services.retriever"))
        address = stack.enter_context(generator("small", SHAPE, server, folder, RETRIEVER_ADDRESS=retriever.address))
        asked = {
            OURS: await stack.enter_async_context(contestant("vllm.ask_answer", replace(task, url=address, index=_INDEX))),
            "LangChain chain": await stack.enter_async_context(
                contestant("vllm.ask_chain", replace(task, index=f"{PREFIX}{_INDEX}"), guest=True)
            ),
            "Haystack pipeline": await stack.enter_async_context(contestant("vllm.ask_pipeline", haystack, guest=True)),
        }
        seen: dict[str, list[Round]] = {name: [] for name in asked}
        names = list(asked)
        for number in range(given.rounds + 1):
            questions = [(number * given.size + place) % task.questions for place in range(given.size)]
            first = number % len(names)
            for name in names[first:] + names[:first]:
                came = await asked[name].round(questions)
                if number:
                    seen[name].append(came)
    return [_figures(name, seen[name], seen[OURS]) for name in names]


def _figures(name: str, seen: list[Round], ours: list[Round]) -> Figures:
    ratios = [theirs.seconds / mine.seconds for theirs, mine in zip(seen, ours, strict=True)]
    pairs = [pair for theirs, mine in zip(seen, ours, strict=True) for pair in zip(theirs.found, mine.found, strict=True)]
    return Figures(
        name,
        statistics.median(len(one.found) / one.seconds for one in seen),
        statistics.median(latency for one in seen for latency in one.latencies_ms),
        statistics.median(one.cpu_s / len(one.found) for one in seen) * 1e3,
        sum(theirs == mine for theirs, mine in pairs) / len(pairs),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
    )


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--passages", type=int, default=5000)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=96, help="questions of a round")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        server = VllmServer(SHAPE, folder)
        server.start()
        try:
            with elasticsearch(folder) as url:
                found = asyncio.run(measure(given, folder, url, server))
        finally:
            server.kill()
    if given.json:
        print(json.dumps([asdict(one) for one in found]))
        return
    print(f"{given.passages} passages, {given.callers} callers, {given.rounds} rounds of {given.size}, load {os.getloadavg()[0]:.1f}")
    print(f"{'':20}{'per s':>8}{'p50 ms':>8}{'cpu ms':>8}{'same':>6}   ours to it")
    for one in found:
        row = f"{one.per_s:8.1f}{one.p50_ms:8.0f}{one.cpu_ms:8.1f}{one.same:6.2f}"
        print(f"{one.name:20}{row}   {one.ratio:.2f} [{one.ratio_from:.2f}, {one.ratio_to:.2f}]")


if __name__ == "__main__":
    main()
