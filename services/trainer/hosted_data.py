"""Training data as a provider's fine-tuning service takes them: a conversation a line, as JSON. Knows no provider."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import InvalidArgument
from services.trainer.formats import conversations

_ROLES = frozenset({"system", "user", "assistant"})


@dataclass(frozen=True, slots=True)
class ChatFile:
    """A file that was written."""

    name: str
    """Told by what is in it, so that the same rows are found again at the provider."""
    size: int
    row_count: int


def chat_rows(path: Path, field: str) -> Iterator[bytes]:
    """The rows of a file of any format of conversations, each as a line.

    Raises InvalidArgument DATASET_UNREADABLE, as `conversations`, and for messages of tools; `field` is the field of the request.
    """
    for conversation in conversations(path, field):
        strange = next((message["role"] for message in conversation.messages if message["role"] not in _ROLES), None)
        if strange is not None:
            message = (
                "{path}: {place}: it has a message of role {role}, which a provider takes only with the call that it answers: write it "
            )
            message += "into a user's message, or leave the row out"
            raise InvalidArgument("DATASET_UNREADABLE", message, path=path, place=conversation.place, role=strange, field=field)
        row = {"messages": [{"role": message["role"], "content": message["content"]} for message in conversation.messages]}
        yield json.dumps(row, ensure_ascii=False).encode() + b"\n"


def write_chat_file(source: Path, target: Path, field: str) -> ChatFile:
    """Writes the rows of `source` into `target`. Raises OSError, and as `chat_rows`."""
    digest, count, size = hashlib.sha256(), 0, 0
    with target.open("wb") as file:
        for row in chat_rows(source, field):
            file.write(row)
            digest.update(row)
            count, size = count + 1, size + len(row)
    return ChatFile(f"tunetrial-{digest.hexdigest()}.jsonl", size, count)
