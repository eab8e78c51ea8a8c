"""Pairs of a better and a worse answer, and the file that may hold them. Knows neither a run nor a stage.

A row has `prompt`, a text or messages that end with the user's, and `chosen` and `rejected`, each a text or one message of the assistant.
Or `chosen` and `rejected` are whole conversations that differ in their last message, and there is no `prompt`. `system`, where it holds
text, is the system's message; other keys are left alone. Rows of one `cluster` are never split between training and evaluation; without
that key, rows of one prompt are not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.data.files import json_lines
from flows.data.leakage import Leak
from flows.data.source import Collector, RowError
from flows.errors import DataError

Turn = Mapping[str, str]

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, the first the better. `id` is unique among pairs that are used together."""

    id: str
    item: str
    """The question that it came of; "" where a file brought it."""
    cluster: str
    question: str
    """What was asked last: the question alone, or the prompt's last turn where a file brought it."""
    references: tuple[str, ...]
    """Right answers: of the question, or the chosen answer where a file brought it."""
    prompt: tuple[Turn, ...]
    chosen: str
    rejected: str

    def row(self) -> dict[str, Any]:
        """As the trainer reads it."""
        return {"prompt": [dict(turn) for turn in self.prompt], "chosen": self.chosen, "rejected": self.rejected}


@dataclass(frozen=True, slots=True)
class Preferences:
    """The pairs of a family in the order from which training sets are cut, and what was read and left out, by reason."""

    pairs: tuple[Pair, ...]
    counts: Mapping[str, int]
    leaks: tuple[Leak, ...] = ()


def read_preferences(path: Path) -> tuple[Pair, ...]:
    """The pairs of a file, each once. DataError with file, line and reason for rows that cannot be used; UserError for no file."""
    collector = Collector(path, "error")
    found: dict[str, Pair] = {}
    for line in json_lines(path, collector):
        with collector.row(line.file, line.line):
            pair = _pair(line.parse())
            found[pair.id] = pair
    try:
        collector.source()
    except DataError as error:
        raise DataError(f"{path}: {len(error.bad_rows)} rows are no preferences", error.rows_read, error.bad_rows) from None
    return tuple(found.values())


def _pair(row: Mapping[str, Any]) -> Pair:
    for key in ("chosen", "rejected"):
        if row.get(key) is None:
            raise RowError(f"no `{key}`: a row has prompt, chosen and rejected")
    (*begun, chosen), (*other, rejected) = (_turns(row[key], key, "assistant") for key in ("chosen", "rejected"))
    if begun != other:
        raise RowError("`chosen` and `rejected` differ before their last message: give two answers to one prompt")
    asked = _turns(row["prompt"], "prompt", "user") if row.get("prompt") is not None else []
    if asked and begun:
        raise RowError("`prompt` is given, and `chosen` and `rejected` are whole conversations: leave one out")
    prompt = asked or begun
    if not prompt:
        raise RowError("no `prompt`: a row has prompt, chosen and rejected")
    if prompt[-1]["role"] != "user":
        raise RowError("the last message of the prompt must be the user's")
    if chosen["role"] != "assistant" or rejected["role"] != "assistant":
        raise RowError("`chosen` and `rejected` must end with the assistant's message")
    if chosen["content"] == rejected["content"]:
        raise RowError("`chosen` and `rejected` are the same: nothing is preferred")
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        if prompt[0]["role"] == "system":
            raise RowError("two system messages: `system` and the first message")
        prompt = [{"role": "system", "content": system}, *prompt]
    hashed = _hash(prompt)
    cluster = row.get("cluster")
    return Pair(
        _hash([hashed, chosen["content"], rejected["content"]]),
        "",
        str(cluster) if isinstance(cluster, str | int) else hashed,
        prompt[-1]["content"],
        (chosen["content"],),
        tuple(prompt),
        chosen["content"],
        rejected["content"],
    )


def _turns(value: Any, key: str, role: str) -> list[dict[str, str]]:
    """Messages; a text is one of this role."""
    if isinstance(value, str):
        return [_turn({"role": role, "content": value}, f"`{key}`")]
    if not isinstance(value, list) or not value:
        raise RowError(f"`{key}` is neither a text nor a list of messages")
    return [_turn(message, f"message {number} of `{key}`") for number, message in enumerate(value)]


def _turn(message: Any, name: str) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise RowError(f"{name} has no text in `content`")
    if message.get("role") not in _ROLES:
        raise RowError(f"{name} has role {message.get('role')!r}, expected one of {', '.join(_ROLES)}")
    if message.get("tool_calls") or message.get("function_call"):
        raise RowError(f"{name} calls tools, which is not trained on: write the call as text")
    try:
        message["content"].encode()
    except UnicodeEncodeError:
        raise RowError(f"{name} holds half a character, an escape such as \\ud83d without the other") from None
    return {"role": message["role"], "content": message["content"]}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=True, sort_keys=True).encode()).hexdigest()
