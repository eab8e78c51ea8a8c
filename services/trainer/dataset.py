"""Training data: conversations to token ids and labels, with an exact count of what was cut or left out. Knows no file and no model.

The loss is on every assistant turn. Where those turns lie is asked of the chat template: by its generation markers
(`{% generation %}`) where it has them, else by rendering the conversation up to each turn with and without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from jinja2 import TemplateError

from services.common.errors import FailedPrecondition, InvalidArgument
from services.trainer.domain import DatasetReport
from services.trainer.formats import Conversation, Message

IGNORED = -100
"""Label of a token that bears no loss; PyTorch's cross entropy leaves it out."""


class ChatTokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, /, **settings: Any) -> Any:
        """Renders and tokenizes messages."""


@dataclass(frozen=True, slots=True)
class Example:
    """One tokenized conversation; `labels` equals `input_ids` on the tokens that bear the loss and is IGNORED elsewhere."""

    conversation: Conversation
    input_ids: list[int]
    labels: list[int]
    truncated: bool


def token_ids(tokenizer: ChatTokenizer, messages: Sequence[Message], generation_prompt: bool = False) -> list[int]:
    """Token ids of messages by the chat template. Raises FailedPrecondition CHAT_TEMPLATE_REFUSES."""
    try:
        ids: list[int] = tokenizer.apply_chat_template(list(messages), add_generation_prompt=generation_prompt, return_dict=False)
    except (TemplateError, ValueError, TypeError) as error:
        message = "the base's chat template refuses the conversation: {why}"
        raise FailedPrecondition("CHAT_TEMPLATE_REFUSES", message, why=error) from error
    return ids


def tokenize(tokenizer: ChatTokenizer, conversation: Conversation) -> tuple[list[int], list[int]]:
    """Token ids and labels of a whole conversation.

    Raises FailedPrecondition CHAT_TEMPLATE_REFUSES or CHAT_TEMPLATE_NOT_A_PREFIX.
    """
    try:
        ids = token_ids(tokenizer, conversation.messages)
        answer = _by_markers(tokenizer, conversation.messages, ids) or _by_prefixes(tokenizer, conversation.messages, ids)
    except FailedPrecondition as error:
        raise FailedPrecondition(error.reason, "{place}: {why}", place=conversation.place, why=error.message) from error
    labels = [token if bears else IGNORED for token, bears in zip(ids, answer, strict=True)]
    # Nothing comes before the first token, so it is never predicted.
    labels[:1] = [IGNORED]
    return ids, labels


def _by_markers(tokenizer: ChatTokenizer, messages: Sequence[Message], ids: list[int]) -> list[bool] | None:
    """Which tokens are the assistant's; None where the template has no markers, or they do not tell the turns apart."""
    if not (isinstance(tokenizer.chat_template, str) and "generation %}" in tokenizer.chat_template.replace("-%}", " %}")):
        return None
    rendered = tokenizer.apply_chat_template(list(messages), return_dict=True, return_assistant_tokens_mask=True)
    answer = [bool(token) for token in rendered["assistant_masks"]]
    # The library marks everything to the end when a marked stretch ends in a character that belongs to no token. Then turns run together.
    runs = sum(after and not before for before, after in pairwise([False, *answer]))
    turns = sum(message["role"] == "assistant" for message in messages)
    return answer if rendered["input_ids"] == ids and runs == turns else None


def _by_prefixes(tokenizer: ChatTokenizer, messages: Sequence[Message], ids: list[int]) -> list[bool]:
    """The same, by the tokens that each assistant turn adds to the prompt before it."""
    answer = [False] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = token_ids(tokenizer, messages[:index], generation_prompt=True) if index else []
        told = token_ids(tokenizer, messages[: index + 1])
        if ids[: len(told)] != told or told[: len(prompt)] != prompt:
            message_ = (
                "the base's chat template does not render a conversation as its beginning plus a turn, so the answer's tokens cannot be "
                "told apart: use a chat template with {{% generation %}} markers, or rows with one assistant turn"
            )
            raise FailedPrecondition("CHAT_TEMPLATE_NOT_A_PREFIX", message_)
        answer[len(prompt) : len(told)] = [True] * (len(told) - len(prompt))
    return answer


def prepare(
    tokenizer: ChatTokenizer, conversations: Iterable[Conversation], max_length: int, field: str
) -> tuple[list[Example], DatasetReport]:
    """Examples to train on, in the order given, and what was learnt on the way.

    Examples of more than `max_length` tokens are cut at the end; those left without an answer token are left out.
    Raises InvalidArgument ALL_MASKED when none is left, FailedPrecondition as `tokenize`.
    """
    examples, read_count, truncated, longest_prompt = [], 0, 0, 0
    for conversation in conversations:
        read_count += 1
        ids, labels = tokenize(tokenizer, conversation)
        cut = len(ids) > max_length
        truncated += cut
        kept = labels[:max_length]
        if any(label != IGNORED for label in kept):
            examples.append(Example(conversation, ids[:max_length], kept, cut))
        else:
            first = next((index for index, label in enumerate(labels) if label != IGNORED), len(labels))
            longest_prompt = max(longest_prompt, first)
    if not examples:
        message = (
            "all {count} examples of {field} lost their whole answer when cut at max_length {max_length}: the longest prompt has {longest} "
            "tokens, so raise max_length (up to the model's context) or show shorter passages"
        )
        raise InvalidArgument("ALL_MASKED", message, count=read_count, field=field, max_length=max_length, longest=longest_prompt)
    tokens = sum(len(example.input_ids) for example in examples)
    answer_tokens = sum(label != IGNORED for example in examples for label in example.labels)
    return examples, DatasetReport(read_count, truncated, read_count - len(examples), tokens, answer_tokens)
