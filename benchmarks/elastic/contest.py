"""What is asked, and how a contestant is driven: as a process that reads rounds from standard input and answers each with figures.

Knows no contestant. Both environments import it, so it needs the standard library alone.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field

Ask = Callable[[int], Awaitable[list[str]]]
"""Answers the question of a number with the ids of passages, best first."""


@dataclass(frozen=True, slots=True)
class Task:
    """What every contestant is asked. A text of it is the argument of its process."""

    url: str
    """Of Elasticsearch, or host and port of our service."""
    index: str
    way: str = ""
    """Which of its ways a contestant shall take."""
    encoder: str = ""
    """Folder of the model that encodes the questions; empty when their vectors are given."""
    seed: int = 7
    passages: int = 0
    questions: int = 1000
    k: int = 10
    window: int = 50
    candidates: int = 200
    callers: int = 16
    llm: str = ""
    """Address of a vLLM, where answers are wanted."""
    tokens: int = 16
    """Longest answer."""

    def dump(self) -> str:
        """As text."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls) -> Task:
        """That of this process."""
        return cls(**json.loads(sys.argv[1]))


@dataclass(frozen=True, slots=True)
class Round:
    """What came of some questions."""

    seconds: float
    cpu_s: float
    """Processor time of the contestant's own process."""
    latencies_ms: list[float] = field(repr=False)
    found: list[list[str]] = field(repr=False)
    """Ids of each question's passages."""


async def serve(ask: Ask, callers: int) -> None:
    """Answers rounds, each a line with its questions' numbers, until standard input ends. `callers` ask at the same time."""
    loop = asyncio.get_running_loop()
    print("ready", flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(asdict(await _round(ask, callers, json.loads(line)))), flush=True)


async def _round(ask: Ask, callers: int, questions: list[int]) -> Round:
    places = iter(range(len(questions)))
    latencies, found = [0.0] * len(questions), [[""]] * len(questions)

    async def caller() -> None:
        for place in places:
            began = time.perf_counter()
            found[place] = await ask(questions[place])
            latencies[place] = (time.perf_counter() - began) * 1e3

    cpu_s, began = _cpu_s(), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return Round(time.perf_counter() - began, _cpu_s() - cpu_s, latencies, found)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
