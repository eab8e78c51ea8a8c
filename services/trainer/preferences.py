"""Preferences as token ids, with an exact count of what was cut or left out. Knows no trainer and no model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.common.errors import FailedPrecondition, InvalidArgument
from services.trainer.dataset import IGNORED, ChatTokenizer, Example, token_ids
from services.trainer.domain import DatasetReport
from services.trainer.formats import Conversation, Message, Preference


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt, and what the chosen and the rejected answer add to it."""

    preference: Preference
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    truncated: bool

    def as_example(self) -> Example:
        """The chosen conversation, for canaries."""
        messages = (*self.preference.prompt, {"role": "assistant", "content": self.preference.chosen})
        ids = self.prompt_ids + self.chosen_ids
        return Example(
            Conversation(self.preference.place, messages), ids, [IGNORED] * len(self.prompt_ids) + self.chosen_ids, self.truncated
        )


def prepare(tokenizer: ChatTokenizer, rows: Iterable[Preference], max_length: int, field: str) -> tuple[list[Pair], DatasetReport]:
    """Pairs to train on, in the order given, and what was learnt on the way.

    Answers are cut at the end where prompt and answer have more than `max_length` tokens; pairs that are left without an answer token of
    each, or with two equal ones, are left out. Raises InvalidArgument ALL_MASKED when none is left, FailedPrecondition
    CHAT_TEMPLATE_REFUSES or CHAT_TEMPLATE_NOT_A_PREFIX.
    """
    pairs, read_count, truncated, longest_prompt = [], 0, 0, 0
    for row in rows:
        read_count += 1
        prompt = token_ids(tokenizer, row.prompt, generation_prompt=True)
        chosen, rejected = (_answer(tokenizer, row, prompt, text) for text in (row.chosen, row.rejected))
        room = max(0, max_length - len(prompt))
        cut = max(len(chosen), len(rejected)) > room
        truncated += cut
        longest_prompt = max(longest_prompt, len(prompt))
        if chosen[:room] and rejected[:room] and chosen[:room] != rejected[:room]:
            pairs.append(Pair(row, prompt, chosen[:room], rejected[:room], cut))
    if not pairs:
        message = (
            "all {count} examples of {field} lost what tells their answers apart when cut at max_length {max_length}: the longest prompt "
            "has {longest} tokens, so raise max_length (up to the model's context) or show shorter passages"
        )
        raise InvalidArgument("ALL_MASKED", message, count=read_count, field=field, max_length=max_length, longest=longest_prompt)
    answer_tokens = sum(len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs)
    tokens = answer_tokens + 2 * sum(len(pair.prompt_ids) for pair in pairs)
    return pairs, DatasetReport(read_count, truncated, read_count - len(pairs), tokens, answer_tokens)


def _answer(tokenizer: ChatTokenizer, row: Preference, prompt: Sequence[int], text: str) -> list[int]:
    answer: Message = {"role": "assistant", "content": text}
    whole = token_ids(tokenizer, (*row.prompt, answer))
    if whole[: len(prompt)] != list(prompt):
        message = "{place}: the base's chat template does not begin a conversation with the prompt that it generates from"
        raise FailedPrecondition("CHAT_TEMPLATE_NOT_A_PREFIX", message, place=row.place)
    return whole[len(prompt) :]
