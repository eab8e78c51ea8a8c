"""Training data: the rows of a file, in any of five formats, as conversations or preferences. Knows no tokenizer and no trainer.

The format of a row is told by its keys; the first that fits in this table is taken, other keys are left alone. A file holds one format.

| format | keys |
|---|---|
| preference | `chosen` and `rejected`: texts or messages; `prompt`: text or messages, or absent where the two are whole conversations |
| messages | `messages`: `{"role", "content"}`, as of OpenAI |
| ShareGPT | `conversations`: `{"from", "value"}` |
| prompt-completion | `prompt` and `completion`: two texts or two lists of messages, as of TRL |
| Alpaca | `instruction` and `output`, with or without `input`, which follows the instruction after a blank line |

In all of them `system` is the system's message, where it holds text. Both readers go through the whole file: rows that cannot be used are
passed over on the way and are an error at the end, so whoever uses what was read must have read to the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from services.common.errors import InvalidArgument
from services.trainer.rows import NotRows, Row, rows

LISTED = 20
"""So many rows that cannot be used are named."""
_LISTED_LENGTH = 1700
"""Characters that they and the path may take: an error comes four times in the trailers, of which gRPC lets 8 KiB through."""
_WHY_LENGTH = 200

Message = Mapping[str, str]
_Fields = Mapping[str, Any]
_Value = TypeVar("_Value")

_KEYS = {
    "preference": ("chosen", "rejected"),
    "messages": ("messages",),
    "ShareGPT": ("conversations",),
    "prompt-completion": ("prompt", "completion"),
    "Alpaca": ("instruction", "output"),
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant"}
_ROLES |= dict.fromkeys(("gpt", "chatgpt", "bing", "bard"), "assistant") | dict.fromkeys(("tool", "function", "observation"), "tool")
_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number", type(None): "null"}


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row: messages that end with the assistant's turn."""

    place: str
    """`file:line`, for messages to people."""
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Preference:
    """One row: a prompt that ends with the user's turn, and two different answers to it."""

    place: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


def conversations(path: Path, field: str) -> Iterator[Conversation]:
    """The rows of a file as conversations.

    Raises InvalidArgument DATASET_UNREADABLE, at the end of the file for rows that cannot be used; `field` is the field of the request that
    named the file.
    """
    advice = "it holds {kind} rows, from which method dpo learns: choose that, or give rows with one answer, such as `messages`"
    for place, messages in _read(path, field, _CONVERSATIONS, advice):
        yield Conversation(place, messages)


def preferences(path: Path, field: str) -> Iterator[Preference]:
    """The rows of a file as preferences. Raises as `conversations`."""
    advice = "it holds {kind} rows, but method dpo learns from rows of `prompt`, `chosen` and `rejected`: give such, or choose method sft"
    for place, (prompt, chosen, rejected) in _read(path, field, _PREFERENCES, advice):
        yield Preference(place, prompt, chosen, rejected)


class _Unusable(Exception):
    """Why a row cannot be used."""


def _read(path: Path, field: str, converters: Mapping[str, Callable[[_Fields], _Value]], advice: str) -> Iterator[tuple[str, _Value]]:
    def unreadable(why: object) -> InvalidArgument:
        return InvalidArgument("DATASET_UNREADABLE", "{path}: {why}", path=path, why=why, field=field)

    listed: list[str] = []
    of_file, usable, broken, room = "", 0, 0, _LISTED_LENGTH - len(ascii(str(path)))
    try:
        for row in rows(path):
            try:
                fields, kind = _recognised(row)
                of_file = of_file or kind
                if of_file not in converters:
                    raise unreadable(advice.format(kind=of_file))
                if kind != of_file:
                    raise _Unusable(f"it is of format {kind}, but the file began with {of_file}: a file holds one format")
                value = converters[kind](fields)
            except _Unusable as error:
                named = f"{row.place}: {str(error)[:_WHY_LENGTH]}"
                # Other letters than ASCII take about as much room there as their escapes.
                room -= len(ascii(named))
                if broken < LISTED and room > 0:
                    listed.append(named)
                broken += 1
            else:
                usable += 1
                yield row.place, value
    except OSError as error:
        raise unreadable(error.strerror or error) from error
    except NotRows as error:
        raise unreadable(error) from error
    if broken:
        more = [f"and {broken - len(listed)} more"] if broken > len(listed) else []
        raise unreadable(f"{broken} of {broken + usable} rows cannot be used ({usable} can): {'; '.join(listed + more)}")
    if not usable:
        raise unreadable("it holds no rows: give at least one example")


def _recognised(row: Row) -> tuple[_Fields, str]:
    if row.broken:
        raise _Unusable(row.broken)
    if not isinstance(row.value, dict):
        raise _Unusable(f"it is {_KINDS[type(row.value)]}, expected an object")
    # Files made of several data sets have all their keys, null where they mean nothing.
    told = {key for key, value in row.value.items() if value is not None}
    kind = next((kind for there in (told, row.value.keys()) for kind, keys in _KEYS.items() if there >= set(keys)), None)
    if kind is None:
        known = "; ".join(" and ".join(keys) for keys in _KEYS.values())
        raise _Unusable(f"no known format: it has {', '.join(row.value)!a:.60}, expected one of: {known}")
    for key in ("tools", "functions"):
        if row.value.get(key):
            raise _Unusable(f"it has `{key}`, which are not trained on: write them into the system's message, or leave them out")
    return row.value, kind


def _of_messages(row: _Fields) -> tuple[Message, ...]:
    return _whole(_with_system(row, _turns(row, "messages")))


def _of_sharegpt(row: _Fields) -> tuple[Message, ...]:
    return _whole(_with_system(row, _turns(row, "conversations")))


def _of_prompt_completion(row: _Fields) -> tuple[Message, ...]:
    if isinstance(row["prompt"], list) != isinstance(row["completion"], list):
        raise _Unusable("`prompt` and `completion` must be two texts or two lists of messages")
    if row.get("label") is False:
        raise _Unusable("`label` is false, which marks an answer not to be learnt: leave such rows out")
    completion = _turns(row, "completion", "assistant")
    return _whole(_with_system(row, (*_turns(row, "prompt", "user"), *completion)))


def _of_alpaca(row: _Fields) -> tuple[Message, ...]:
    if row.get("history"):
        raise _Unusable("it has `history`, which Alpaca's authors do not know: give conversations as `messages`")
    parts = (_text(row, "instruction"), _text(row, "input") if row.get("input") is not None else "")
    question = _message("user", "\n\n".join(part for part in parts if part.strip()))
    return _with_system(row, (question, _message("assistant", _text(row, "output"))))


def _preference(row: _Fields) -> tuple[tuple[Message, ...], str, str]:
    (*begun, chosen), (*other, rejected) = (_whole(_turns(row, key, "assistant")) for key in ("chosen", "rejected"))
    prompt = tuple(begun)
    if row.get("prompt") is not None:
        asked = _turns(row, "prompt", "user")
        if begun and tuple(begun[-len(asked) :]) != asked:
            raise _Unusable("`chosen` does not go on from `prompt`: give one message of the assistant, or the whole conversation")
        prompt = prompt or asked
    if begun != other:
        raise _Unusable("`chosen` and `rejected` differ before their last message: give two answers to one prompt")
    if not prompt:
        raise _Unusable("there is no `prompt`: give it, or whole conversations as `chosen` and `rejected`")
    if prompt[-1]["role"] != "user":
        raise _Unusable("the last message of the prompt must be the user's")
    if chosen == rejected:
        raise _Unusable("`chosen` and `rejected` are the same: nothing is preferred")
    return _with_system(row, prompt), chosen["content"], rejected["content"]


_CONVERSATIONS = {
    "messages": _of_messages,
    "ShareGPT": _of_sharegpt,
    "prompt-completion": _of_prompt_completion,
    "Alpaca": _of_alpaca,
}
_PREFERENCES = {"preference": _preference}


def _turns(row: _Fields, key: str, role: str | None = None) -> tuple[Message, ...]:
    """The messages under a key; with a role, a text is one message of it."""
    value = row[key]
    if role is not None and not isinstance(value, list):
        return (_message(role, _text(row, key)),)
    if not isinstance(value, list) or not value:
        raise _Unusable(f"`{key}` is {'empty' if value == [] else _KINDS[type(value)]}, expected a list of messages")
    return tuple(_turn(message, f"message {index}" + (f" of `{key}`" if role else "")) for index, message in enumerate(value))


def _turn(message: object, name: str) -> Message:
    if not isinstance(message, dict):
        raise _Unusable(f"{name} is no object")
    # Some call the list as ShareGPT does and its parts as OpenAI does.
    role_key, text_key = ("from", "value") if message.get("from") is not None else ("role", "content")
    role = message.get(role_key)
    if not isinstance(role, str) or role not in _ROLES:
        raise _Unusable(f"{name} has role {role!a:.40}, expected one of {', '.join(dict.fromkeys(_ROLES.values()))}")
    for key in ("tool_calls", "function_call"):
        if message.get(key):
            raise _Unusable(f"{name} has `{key}`, which are not trained on: write the call as text, or leave the row out")
    if message.get("weight") == 0:
        raise _Unusable(f"{name} has weight 0, but every message of the assistant is learnt: leave the row out, or cut it before")
    return _message(_ROLES[role], _text(message, text_key, f"{name} has"))


def _text(holder: _Fields, key: str, name: str = "it has") -> str:
    value = holder.get(key)
    if not isinstance(value, str):
        what = f"it is {_KINDS[type(value)]}" if key in holder else "it is missing"
        raise _Unusable(f"{name} no text in `{key}`: {what}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _Unusable(f"{name} half a character in `{key}`: {value[error.start]!a} without its other half") from None
    return value


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _with_system(row: _Fields, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    if row.get("system") is None or not _text(row, "system").strip():
        return turns
    if turns[0]["role"] == "system":
        raise _Unusable("it has two system messages: `system` and the first message")
    return (_message("system", row["system"]), *turns)


def _whole(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    if turns[-1]["role"] != "assistant":
        raise _Unusable("the last message must be the assistant's")
    return turns
