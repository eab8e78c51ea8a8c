"""Scores of pairs of query and passage by a sentence-transformers CrossEncoder, batched over all callers. Knows no index.

A score is the model's output before any activation function: without bounds, larger is better, and in the order of what
`CrossEncoder.predict` gives, but two good passages never tie because a sigmoid is full. Numbers of different models do not compare.
Pairs longer than the model's `max_seq_length` (512 word pieces for most) are cut by it, the longer text of the two first: what a long
passage says at its end counts for nothing. The length is logged when the model is loaded.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from services.common.errors import FailedPrecondition, Internal, ResourceExhausted, Unavailable
from services.retriever import model_files
from services.retriever.batching import Batching

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

_log = structlog.get_logger()

_POOL = 4
"""Batches whose pairs are sorted by length together, so that little of a batch is padding."""

_Pair = tuple[str, str]


class SentenceReranker:
    """One model. While it works, pairs of other callers gather."""

    def __init__(self, name: str, *, device: str, threads: int, batch_size: int, max_queue: int, executor: ThreadPoolExecutor) -> None:
        """`name` is the operator's own: a model of the hub or a folder anywhere. `executor` is the one thread of the device."""
        self._name, self._device, self._threads = name, device, threads
        self._batch_size, self._max_queue, self._executor = batch_size, max_queue, executor
        self._pairs = Batching(self._work, largest=batch_size * _POOL, in_flight=1)
        self._model: CrossEncoder | None = None
        self._fingerprint = ""
        self._pair_count = 0

    @property
    def identity(self) -> str:
        """`name@fingerprint`."""
        return f"{self._name}@{self._fingerprint}"

    async def prepare(self) -> None:
        """Loads the model and runs it once. Raises FailedPrecondition RERANKER_UNAVAILABLE."""
        run = asyncio.get_running_loop().run_in_executor
        try:
            model, self._fingerprint = await run(self._executor, partial(_load_model, self._name, self._device, self._threads))
        except Exception as error:
            message = "reranker {reranker} cannot be loaded: {why}; it must be a cross-encoder with one score, in safetensors"
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise FailedPrecondition("RERANKER_UNAVAILABLE", message, reranker=self._name, why=why) from error
        self._model = model
        await self.scores("warm up", ["warm up"])
        _log.info("reranker loaded", reranker=self.identity, device=self._device, max_tokens=model.max_seq_length)

    async def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """See `Reranker`."""
        if self._model is None:
            raise Unavailable("RERANKER_LOADING", "the reranker {reranker} is being loaded", reranker=self._name, retry_after_s=5)
        if self._pair_count + len(texts) > self._max_queue:
            message = "{count} pairs wait for the reranker already: come back later, or raise TUNETRIAL_MAX_RERANK_QUEUE"
            raise ResourceExhausted("RERANKER_QUEUE_FULL", message, count=self._pair_count, retry_after_s=1)
        self._pair_count += len(texts)
        try:
            scores = await self._pairs(*((query, text) for text in texts))
        finally:
            self._pair_count -= len(texts)
        if not all(map(math.isfinite, scores)):
            raise Internal("RERANKER_OUTPUT_INVALID", "the reranker gave numbers that are not finite: its weights are broken")
        return scores

    async def _work(self, pairs: Sequence[_Pair]) -> list[float]:
        run = asyncio.get_running_loop().run_in_executor
        by_length = sorted(range(len(pairs)), key=lambda number: sum(map(len, pairs[number])))
        scores = [0.0] * len(pairs)
        # One batch at a time, so that texts of the encoder get their turn on the device in between.
        for start in range(0, len(pairs), self._batch_size):
            chosen = by_length[start : start + self._batch_size]
            found = await run(self._executor, self._predict, [pairs[number] for number in chosen])
            for number, score in zip(chosen, found, strict=True):
                scores[number] = score
        return scores

    def _predict(self, pairs: list[_Pair]) -> list[float]:
        assert self._model is not None  # noqa: S101  `scores` asked
        scores: list[float] = self._model.predict(pairs, batch_size=len(pairs), show_progress_bar=False).tolist()
        return scores


def _load_model(name: str, device: str, threads: int) -> tuple[CrossEncoder, str]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as for the encoder, which may come later
    import torch  # noqa: PLC0415  takes seconds: the port is open before
    from sentence_transformers import CrossEncoder  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the library leaves it without types
    torch.set_num_threads(threads)
    folder = Path(name).expanduser() if name.startswith(("/", ".", "~")) else model_files.from_hub(name, "cross-encoder")
    if not folder.is_dir():
        raise FileNotFoundError("there is no such folder")
    fingerprint = model_files.fingerprint(folder)
    _check_trained(folder)
    model = CrossEncoder(
        str(folder),
        device=device,
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"use_safetensors": True},
        activation_fn=torch.nn.Identity(),
    )
    if model.num_labels != 1:
        raise ValueError(f"it gives {model.num_labels} scores for a pair")
    return model, fingerprint


def _check_trained(folder: Path) -> None:
    """Raises ValueError for a model without a layer for scores: the library would make one up, of random numbers."""
    own = folder / "config_sentence_transformers.json"
    if own.exists() and json.loads(own.read_text(encoding="utf-8")).get("model_type") == "CrossEncoder":
        return
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    if not any(name.endswith(("ForSequenceClassification", "ForCausalLM")) for name in saved):
        raise ValueError(f"it was saved as {', '.join(saved) or 'something unknown'}, without a layer for scores")
