"""A base model with its LoRA adapters, soft prompts and fully fine-tuned models by transformers and PEFT, in process.

Tensors are touched by one thread only, so the event loop never waits for a model; a second thread turns prompts into tokens. Requests
wait in a queue, join the batch between two steps and leave it as soon as they end or their caller goes. Knows no wire, no callers and no
proof.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import structlog
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from services.common.errors import FailedPrecondition, InvalidArgument, Unavailable
from services.generator.chat_tokenizer import ChatTokenizer
from services.generator.continuous_batch import Row
from services.generator.domain import Base, Canary, Encoded, Generation, Prompt, Replica, Work
from services.generator.model_files import base_sha256, model_folder
from services.generator.model_shelf import ModelShelf
from services.generator.text_stream import TextStream

_log = structlog.get_logger()
_P = ParamSpec("_P")
_T = TypeVar("_T")
# Prompts prefilled together may be padded by so much; beyond it, padding costs more than another pass.
_PADDING = 1.3
_HERE = "this process"


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of one engine."""

    batch_size: int = 32
    """Requests that generate together."""
    prefill_tokens: int = 512
    """Prompt tokens, padding included, that one step takes in at most; a single longer prompt is taken alone."""
    full_models: int = 4
    """Fully fine-tuned models beside the base; each takes as much memory as it does."""


class _Ticket:
    """A request under way: its row, and the events that its caller reads."""

    def __init__(self, row: Row, stream: bool) -> None:
        self.row, self.stream = row, stream
        self.events: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        """Pieces of text; None for the end; an error."""


class TransformersEngine:
    """One base model, held once, whatever the number of its adapters; models with weights of their own are held beside it."""

    def __init__(
        self, name: str, source: str, *, dtype: str = "float32", device: str = "cpu", threads: int = 1, limits: Limits | None = None
    ) -> None:
        self._name, self._source, self._dtype, self._device = name, source, dtype, device
        self._limits = limits or Limits()
        self._model_thread = ThreadPoolExecutor(1, f"model-{name}", initializer=torch.set_num_threads, initargs=(threads,))
        self._text_thread = ThreadPoolExecutor(1, f"text-{name}")
        self._base: Base | None = None
        self._waiting: deque[_Ticket] = deque()
        self._running: dict[Row, _Ticket] = {}
        self._left: set[Row] = set()
        self._work_came = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    @property
    def base(self) -> Base:
        """The base model. Raises Unavailable ENGINE_UNAVAILABLE until it is loaded."""
        return self._check_loaded()

    def _check_loaded(self) -> Base:
        if self._base is None:
            raise Unavailable("ENGINE_UNAVAILABLE", "model {name} is still being loaded: try again soon", name=self._name, retry_after_s=2)
        return self._base

    @property
    def capacity(self) -> int:
        """Twice a batch, so that whoever is next is at hand when a place becomes free."""
        return 2 * self._limits.batch_size

    def epoch(self, replica: str) -> int:
        """Never changes: this process is the engine."""
        return 0

    async def replicas(self) -> tuple[Replica, ...]:
        """This process."""
        self._check_loaded()
        return (Replica(_HERE, frozenset(self._shelf.names)),)

    @property
    def running_count(self) -> int:
        """Requests in the batch."""
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    async def prepare(self) -> None:
        """Loads the base. Raises ValueError when it cannot be served."""
        try:
            folder = await asyncio.to_thread(partial(model_folder, self._source, weights=True))
            await self._on_model_thread(self._load, folder)
            digest = await asyncio.to_thread(base_sha256, folder)
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())
            raise ValueError(
                f"base model {self._name} cannot be served from {self._source}: {why}. It must be a folder or hub name with config.json, "
                "tokenizer.json and *.safetensors"
            ) from error
        self._base = Base(self._name, self._source, digest, self._context, datetime.now(UTC), "transformers")
        self._loop = asyncio.create_task(self._run(), name=f"batch-{self._name}")
        _log.info("model loaded", model=self._name, context_tokens=self._context, dtype=str(self._model.dtype), device=self._device)

    async def encode(self, prompt: Prompt) -> Encoded:
        """Tokens of a prompt, special tokens as the model wants them, never twice."""
        self._check_loaded()
        return await asyncio.get_running_loop().run_in_executor(self._text_thread, self._tokenizer.encode, prompt)

    async def generate(self, work: Work) -> AsyncGenerator[str | Generation, None]:
        """Pieces of text if wanted, then the whole; its `prompt_tokens` are without the virtual tokens of a soft prompt.

        Raises FailedPrecondition DECODING_UNSUPPORTED, Unavailable ENGINE_UNAVAILABLE.
        """
        started = time.perf_counter()
        decoding = work.decoding
        if decoding.constraint is not None:
            message = "engine transformers cannot constrain what a model writes: serve {name} by vLLM or TGI"
            raise FailedPrecondition("DECODING_UNSUPPORTED", message, name=self._name, field="decoding.constraint")
        seed = None
        if not decoding.greedy:
            seed = secrets.randbits(63) if decoding.seed is None else decoding.seed
        text = TextStream(self._decode, decoding.stop)
        row = Row(work, text, seed, self._shelf.soft.length(work.adapter), self._shelf.is_full(work.adapter))
        ticket = _Ticket(row, work.stream)
        self._submit(ticket)
        try:
            while (event := await ticket.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
            if row.finish is None:
                raise Unavailable("ENGINE_UNAVAILABLE", "model {name} is stopping", name=self._name)
            latency = (time.perf_counter() - started) * 1e3
            # Our own machine has no price per token: known to be free.
            yield Generation(text.text, row.finish, len(row.prompt), row.count, latency, 0.0, tuple(row.tokens), seed)
        finally:
            self._forget(ticket)

    async def load_adapter(self, adapter: str, folder: Path, among: frozenset[str] = frozenset()) -> None:
        """Puts an adapter in, between two steps; it is read while others go on.

        Raises InvalidArgument ADAPTER_UNREADABLE, FailedPrecondition ADAPTER_BASE_MISMATCH, ResourceExhausted FULL_MODELS_TOO_MANY,
        MEMORY_EXHAUSTED.
        """
        self._check_loaded()
        read = await asyncio.to_thread(self._shelf.read, adapter, folder)
        await self._on_model_thread(self._shelf.put_in, adapter, folder, read)

    async def unload_adapter(self, adapter: str) -> None:
        """Takes an adapter out, between two steps."""
        await self._on_model_thread(self._shelf.take_out, adapter)

    async def score(self, rows: Sequence[tuple[str | None, Canary]], replica: str = _HERE) -> tuple[tuple[float, ...], ...]:
        """Log-probabilities of the completions' tokens, read as requests are: in one batch for all that share one."""
        assert replica == _HERE  # noqa: S101  there is no other
        self._check_loaded()
        loop = asyncio.get_running_loop()
        encoded = [
            (adapter, *await loop.run_in_executor(self._text_thread, self._tokenizer.encode_canary, canary)) for adapter, canary in rows
        ]
        for adapter, prompt, completion in encoded:
            if not completion or self._shelf.soft.length(adapter) + len(prompt) + len(completion) > self._context:
                raise InvalidArgument(
                    "ADAPTER_UNREADABLE", "a canary of the manifest is empty or longer than the model's context", field="uri"
                )
        return tuple(await self._on_model_thread(self._shelf.score, encoded))

    async def close(self) -> None:
        """Ends all work; requests under way fail with ENGINE_UNAVAILABLE."""
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        self._fail(Unavailable("ENGINE_UNAVAILABLE", "the service is stopping"))
        self._model_thread.shutdown(wait=False)
        self._text_thread.shutdown(wait=False)

    async def _on_model_thread(self, call: Callable[_P, _T], *args: _P.args, **_: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._model_thread, call, *args)

    # The queue and the batch, on the event loop.

    def _submit(self, ticket: _Ticket) -> None:
        self._check_loaded()
        self._waiting.append(ticket)
        self._work_came.set()

    def _forget(self, ticket: _Ticket) -> None:
        if self._running.pop(ticket.row, None) is not None:
            self._left.add(ticket.row)
            self._work_came.set()
        elif ticket in self._waiting:
            self._waiting.remove(ticket)

    async def _run(self) -> None:
        while True:
            await self._work_came.wait()
            newcomers = self._admit()
            left, self._left = frozenset(self._left), set()
            try:
                progress = await self._on_model_thread(self._shelf.step, [ticket.row for ticket in newcomers], left)
            except Exception as error:
                _log.exception("a step failed; its requests end", model=self._name)
                self._fail(Unavailable("ENGINE_UNAVAILABLE", "model {name} failed: {error}", name=self._name, error=type(error).__name__))
                await self._on_model_thread(self._shelf.clear)
                progress = []
            for row, piece in progress:
                self._deliver(row, piece)
            if not (self._waiting or self._running or self._left):
                self._work_came.clear()

    def _admit(self) -> list[_Ticket]:
        """Moves waiting requests, in order, into the batch while there is room and padding stays small."""
        admitted: list[_Ticket] = []
        longest, total = 0, 0
        while self._waiting and len(self._running) < self._limits.batch_size:
            length = self._waiting[0].row.length
            longest, total = max(longest, length), total + length
            padded = longest * (len(admitted) + 1)
            if admitted and (padded > self._limits.prefill_tokens or padded > _PADDING * total):
                break
            ticket = self._waiting.popleft()
            self._running[ticket.row] = ticket
            admitted.append(ticket)
        return admitted

    def _deliver(self, row: Row, piece: str) -> None:
        ticket = self._running.get(row)
        if ticket is None:
            return
        if piece and ticket.stream:
            ticket.events.put_nowait(piece)
        if row.finish is not None:
            del self._running[row]
            ticket.events.put_nowait(None)

    def _fail(self, error: Exception) -> None:
        for ticket in (*self._running.values(), *self._waiting):
            ticket.events.put_nowait(error)
        self._running.clear()
        self._waiting.clear()
        self._left.clear()

    # What runs on the two threads.

    def _load(self, folder: Path) -> None:
        self._tokenizer = ChatTokenizer(self._name, folder)
        tokenizer = self._tokenizer.library
        dtype = self._dtype if self._dtype == "auto" else getattr(torch, self._dtype)
        read: Any = AutoModelForCausalLM.from_pretrained
        self._model = read(folder, dtype=dtype, use_safetensors=True).to(self._device).eval().requires_grad_(False)
        config = self._model.config
        self._context = int(getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length)
        kinds = {type(layer) for layer in DynamicCache(config=config).layers}
        if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ValueError(f"model {self._name} keeps its past in {names}, which cannot share a batch: serve it by another engine")
        self._decode = self._tokenizer.decoder()
        self._shelf = ModelShelf(self._model, self._tokenizer, self._context, self._limits.full_models)
