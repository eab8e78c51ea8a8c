"""Prompts as the tokens that a model sees, by the model's own tokenizer and chat template. Knows no engine and no weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer

from services.common.errors import FailedPrecondition, InvalidArgument
from services.generator.domain import Canary, Encoded, Prompt, Turn


class ChatTokenizer:
    """The tokenizer of one base. Not safe for use by several threads at once."""

    def __init__(self, name: str, folder: Path) -> None:
        """`name` is the base's, for errors. Raises OSError or ValueError when the folder holds no tokenizer."""
        self._name = name
        self.library: Any = AutoTokenizer.from_pretrained(folder)
        """The tokenizer of transformers."""

    def encode(self, prompt: Prompt) -> Encoded:
        """Tokens of a prompt, special tokens as the model wants them, never twice.

        Raises InvalidArgument CONVERSATION_INVALID, FailedPrecondition CHAT_TEMPLATE_MISSING.
        """
        if isinstance(prompt, str):
            return Encoded(prompt, self._tokens_of(prompt))
        return Encoded(prompt, tuple(self._templated(prompt, tokenize=True, add_generation_prompt=True)["input_ids"]))

    def text(self, encoded: Encoded) -> str:
        """A prompt as text from which a server that adds the special tokens by itself makes the same tokens.

        Raises FailedPrecondition PROMPT_NOT_REPRODUCIBLE when it would make others.
        """
        prompt = encoded.prompt
        text = prompt if isinstance(prompt, str) else str(self._templated(prompt, tokenize=False, add_generation_prompt=True))
        begin = self.library.bos_token
        # A template often writes the token that begins a text, which such a server adds as well.
        for candidate in (text, text.removeprefix(begin) if begin else text):
            if tuple(self.library(candidate)["input_ids"]) == encoded.tokens:
                return candidate
        message = "as text, this prompt would not become the tokens that model {name} is to see: serve it by an engine that takes tokens"
        raise FailedPrecondition("PROMPT_NOT_REPRODUCIBLE", message, name=self._name)

    def encode_canary(self, canary: Canary) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Prompt and completion: what the chat template adds to the prompt when the answer is there, end of turn included."""
        prompt = self.encode(canary.prompt).tokens
        if not isinstance(canary.prompt, str):
            whole = tuple(self._templated((*canary.prompt, Turn("assistant", canary.completion)), tokenize=True)["input_ids"])
            if whole[: len(prompt)] == prompt:
                return prompt, whole[len(prompt) :]
        # Bare text, or a template that tells past turns otherwise; any answer tells whether an adapter changes anything, and one that
        # was measured on other tokens is not reproduced.
        return prompt, tuple(self.library(canary.completion, add_special_tokens=False)["input_ids"])

    def decoder(self) -> Callable[[Sequence[int]], str]:
        """Text of tokens without special ones, by a copy of its own: for another thread."""
        tokenizer = copy.deepcopy(self.library)
        fast = getattr(tokenizer, "backend_tokenizer", None)
        if fast is None:
            return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
        # The fast tokenizer's own call, because this happens twice a token.
        return lambda ids: str(fast.decode(ids, skip_special_tokens=True))

    def speller(self) -> Callable[[int], str]:
        """Text of one token, special ones too, by a copy of its own: for another thread."""
        tokenizer = copy.deepcopy(self.library)
        return lambda token: str(tokenizer.decode([token]))

    def _tokens_of(self, text: str) -> tuple[int, ...]:
        begins = self.library.bos_token is not None and text.startswith(self.library.bos_token)
        return tuple(self.library(text, add_special_tokens=not begins)["input_ids"])

    def _templated(self, turns: Sequence[Turn], **how: Any) -> Any:
        if not self.library.chat_template:
            raise FailedPrecondition("CHAT_TEMPLATE_MISSING", "model {name} has no chat template: send bare text", name=self._name)
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return self.library.apply_chat_template(messages, **({"return_dict": True} if how["tokenize"] else {}), **how)
        except TemplateError as error:
            message = "the chat template of {name} refuses this: {error}"
            raise InvalidArgument("CONVERSATION_INVALID", message, name=self._name, error=error, field="prompt") from error
