"""Real parts for the generator's tests; see generator_parts.py."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from generator_parts import ADAPTERS, make_adapter, make_base

from services.generator.transformers_engine import Limits, TransformersEngine


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: make_adapter(base, folder / str(seed), seed) for seed, name in enumerate(ADAPTERS)}


@pytest.fixture
def adapter_maker(base: Path, tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "made", seed: int = 9, **kwargs: Any) -> Path:
        return make_adapter(base, tmp_path / name, seed, **kwargs)

    return make


@pytest_asyncio.fixture
async def engine(base: Path, adapters: dict[str, Path]) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine("tiny", str(base), limits=Limits(batch_size=6, prefill_tokens=512))
    await engine.prepare()
    for name, folder in adapters.items():
        await engine.load_adapter(name, folder)
    yield engine
    await engine.close()
