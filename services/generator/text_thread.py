"""The tokenizer of a remote engine's base, on a thread of its own: it is not safe for several, and the event loop does not wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from services.generator.chat_tokenizer import ChatTokenizer
from services.generator.model_files import model_folder
from services.generator.replicas import away

Made = TypeVar("Made")


class TextThread:
    """One tokenizer and its thread."""

    def __init__(self, name: str, source: str) -> None:
        """`name` is the base's, for errors; `source` a folder or a name on the hub. Reads nothing."""
        self._name, self._source = name, source
        self._thread = ThreadPoolExecutor(1, f"text-{name}")
        self._tokenizer: ChatTokenizer | None = None

    async def open(self) -> tuple[ChatTokenizer, Path]:
        """Reads the tokenizer; also the folder that it came from. Raises ValueError when there is none."""
        try:
            folder = await asyncio.to_thread(partial(model_folder, self._source, weights=False))
            self._tokenizer = await asyncio.to_thread(ChatTokenizer, self._name, folder)
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())
            raise ValueError(f"no tokenizer for model {self._name} in {self._source}: {why}") from error
        return self._tokenizer, folder

    async def run(self, call: Callable[[ChatTokenizer], Made]) -> Made:
        """What `call` makes with the tokenizer. Raises Unavailable ENGINE_UNAVAILABLE before it was read, and what `call` raises."""
        if self._tokenizer is None:
            raise away(self._name, "the service is starting")
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, self._tokenizer)

    def close(self) -> None:
        """Waits for nothing."""
        self._thread.shutdown(wait=False)
