"""Ten thousand prompts on one stream, over an engine that fails now and then."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path

import pytest
from generator_parts import generate
from generator_server import served
from tunetrial.generator.v1 import generator_pb2 as pb

from services.common.errors import Unavailable
from services.generator.domain import Generation, Work
from services.generator.transformers_engine import Limits, TransformersEngine

pytestmark = pytest.mark.timeout(900)

REQUESTS = 10_000
IN_FLIGHT = 32
SETTLED = 2_000
"""Answers after which everything that grows only once has grown."""


class Faulty(TransformersEngine):
    """Loses one request of a hundred, half of them before and half after the work is done."""

    seen = 0
    lost = 0
    at_work = 0
    most = 0

    async def generate(self, work: Work) -> AsyncGenerator[str | Generation, None]:
        self.at_work += 1
        self.most = max(self.most, self.at_work)
        try:
            async for piece in self._generate(work):
                yield piece
        finally:
            self.at_work -= 1

    async def _generate(self, work: Work) -> AsyncGenerator[str | Generation, None]:
        self.seen += 1
        fault = self.seen % 200
        if fault == 7:
            self.lost += 1
            raise Unavailable("ENGINE_UNAVAILABLE", "lost before")
        async for piece in super().generate(work):
            if fault == 107:
                self.lost += 1
                raise Unavailable("ENGINE_UNAVAILABLE", "lost after")
            yield piece


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def test_ten_thousand_prompts_have_one_result_or_one_error_each_and_memory_stays(base: Path, tmp_path: Path) -> None:
    engine = Faulty("tiny", str(base), limits=Limits(batch_size=32))

    async def requests() -> AsyncIterator[pb.BatchGenerateRequest]:
        for number in range(REQUESTS):
            yield pb.BatchGenerateRequest(id=str(number), generate=generate(f"{number}?", max_tokens=1))

    taken = 0
    results: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    settled: tuple[int, float] | None = None
    async with served({"tiny": engine}, tmp_path, "", batch_in_flight=IN_FLIGHT) as stub:
        async for response in stub.BatchGenerate(requests()):
            taken += 1
            results[response.id] += 1
            kinds[response.failure.reason or "text"] += 1
            if taken == SETTLED:
                gc.collect()
                settled = len(gc.get_objects()), rss_mib()
        gc.collect()
        objects, memory = len(gc.get_objects()), rss_mib()
    assert set(results) == {str(number) for number in range(REQUESTS)}
    assert set(results.values()) == {1}
    assert kinds == {"text": REQUESTS - engine.lost, "ENGINE_UNAVAILABLE": engine.lost}
    assert engine.lost == REQUESTS // 100
    # The stream is read as far as there is room (what the transport buffers is bounded in bytes), and nothing of what is done stays.
    assert engine.most <= IN_FLIGHT
    assert settled is not None
    assert objects < settled[0] * 1.05
    assert memory < settled[1] + 32
