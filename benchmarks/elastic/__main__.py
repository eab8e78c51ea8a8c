"""Search and ingest on a real Elasticsearch 8.19: our service, the bare client, LangChain and Haystack, in one run.

    python -m benchmarks.elastic                          # 100,000 passages, an hour on 2 cores, most of it filling two indexes
    python -m benchmarks.elastic --passages 10000         # a short one
    python -m benchmarks.elastic search --keep FOLDER     # one part alone; indexes stay in FOLDER and are not made again

Every contestant is a process of its own with one thread and 16 callers; rounds alternate, and a ratio is that of two rounds with the same
questions, one after the other. Passages and questions are made from a seed, their vectors are synthetic: what is measured is throughput,
not quality. All contestants search vectors of the same kind (float HNSW), in one segment, with the same k, window and candidates.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from benchmarks.elastic.contest import Task
from benchmarks.elastic.ingest import Race, end_to_end, memory, with_ready_vectors
from benchmarks.elastic.processes import elasticsearch
from benchmarks.elastic.search import CONTESTANTS, Figures, fill, search

_PARTS = ("search", "encoding", "ingest", "end-to-end", "memory")
_TARGETS = {"bare client, legs and passages": 0.9, "LangChain ensemble": 1.25, "Haystack pipeline": 3.0}
_TARGETS_ENCODING = {"LangChain ensemble": 1.5, "Haystack pipeline": 1.5}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", default=["search", "encoding"], help="of search, encoding, ingest, memory; all when none is named"
    )
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--size", type=int, default=200, help="questions of a round")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--url", help="an Elasticsearch that runs on this machine, instead of one that is started for this run")
    parser.add_argument("--keep", type=Path, help="folder of the server's data and of logs; kept, and used again")
    parser.add_argument("--against", default="bare,langchain,haystack", help=f"some of {','.join(CONTESTANTS)} (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a part")
    return parser.parse_args()


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
    else:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)


def _show(part: str, given: argparse.Namespace, found: list[Figures]) -> None:
    if given.json:
        _dump(part, given, [asdict(one) for one in found])
        return
    targets = _TARGETS_ENCODING if part == "encoding" else _TARGETS
    rounds, load = f"{given.rounds} rounds of {given.size} questions", os.getloadavg()[0]
    print(f"\n{part}: {given.passages} passages, {rounds}, 16 callers, load {load:.1f}; processor times are ms a question")
    print(f"{'':34}{'per s':>8}{'p50 ms':>8}{'p95 ms':>8}{'client':>8}{'service':>8}{'server':>8}{'same':>6}   ours to it")
    for one in found:
        row = (one.per_s, one.p50_ms, one.p95_ms, one.client_cpu_ms, one.service_cpu_ms, one.server_cpu_ms)
        target = f", wanted {targets[one.name]}" if one.name in targets else ""
        ratio = f"{one.ratio:.2f} [{one.ratio_from:.2f}, {one.ratio_to:.2f}]{target}"
        print(f"{one.name:34}" + "".join(f"{value:8.1f}" for value in row) + f"{one.same:6.2f}   {ratio}", flush=True)


def _show_race(given: argparse.Namespace, race: Race) -> None:
    if given.json:
        _dump("ingest", given, asdict(race))
        return
    print(f"\n{race.name}: {race.ratio:.2f} [{race.ratio_from:.2f}, {race.ratio_to:.2f}], wanted 0.9; load {os.getloadavg()[0]:.1f}")
    print(f"  ours {race.ours_per_s:.0f}, the other {race.other_per_s:.0f} passages a second (size {race.other_size})", flush=True)


def _show_memory(given: argparse.Namespace, found: dict[int, float]) -> None:
    if given.json:
        _dump("memory", given, found)
        return
    print("\nmost memory of the service in an ingest of")
    for passages, mib in found.items():
        print(f"  {passages:7} passages {mib:6.0f} MiB", flush=True)


def _dump(part: str, given: argparse.Namespace, found: object) -> None:
    print(json.dumps({"part": part, "passages": given.passages, "load": os.getloadavg()[0], "found": found}), flush=True)


async def _run(given: argparse.Namespace, url: str, folder: Path) -> None:
    against = tuple(given.against.split(","))
    parts = [part for part in _PARTS if part in (given.parts or _PARTS)]
    if {"search", "encoding"} & set(parts):
        await fill(url, folder, given.seed, given.passages, against)
    for part in parts:
        if part in ("search", "encoding"):
            task = Task(url, "", seed=given.seed, passages=given.passages)
            encoding = part == "encoding"
            found = await search(url, folder, task, rounds=given.rounds, size=given.size, encoding=encoding, against=against)
            _show(part, given, found)
        elif part == "ingest":
            size = min(given.passages, 20_000)
            _show_race(given, await with_ready_vectors(url, folder, given.seed, passages=size, trial=size // 4000 * 1000, rounds=3))
        elif part == "end-to-end":
            _show_race(given, await end_to_end(url, folder, given.seed, passages=2000, trial=1000, rounds=3))
        else:
            sizes = tuple(sorted({given.passages // 5000 * 1000, given.passages}))
            _show_memory(given, await memory(url, folder, given.seed, sizes))


def main() -> None:
    """Prints the figures."""
    given = _arguments()
    if given.passages % 1000 or given.passages < 5000:
        sys.exit("--passages goes by thousands, from 5000 on")
    if unknown := set(given.parts) - set(_PARTS) | set(given.against.split(",")) - set(CONTESTANTS):
        sys.exit(f"there is no {', '.join(sorted(unknown))}: see --help")
    with _folder(given.keep) as folder:
        if given.url:
            asyncio.run(_run(given, given.url, folder))
        else:
            with elasticsearch(folder) as url:
                asyncio.run(_run(given, url, folder))


main()
