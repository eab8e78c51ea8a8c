"""What TGI answers, token by token, as a generation. Knows no connection.

Text is made from the tokens as in the other engines: TGI leaves stop texts in, and sees none that ends within a token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from huggingface_hub import TextGenerationOutput, TextGenerationStreamOutput

from services.common.errors import FailedPrecondition, Internal
from services.generator.domain import Finish, Generation, Token, TopToken, Work
from services.generator.replicas import away
from services.generator.text_stream import TextStream

_FINISH = {"length": Finish.LENGTH, "eos_token": Finish.END, "stop_sequence": Finish.STOP}


class Answer:
    """Takes what comes and adds it up."""

    def __init__(self, name: str, work: Work, decode: Callable[[Sequence[int]], str], spell: Callable[[int], str], end: int | None) -> None:
        """`name` is the base's, for errors; `decode` gives the text of tokens, `spell` that of one; `end` is the token that ends a turn."""
        self._name, self._work, self._spell, self._end = name, work, spell, end
        self._text = TextStream(decode, work.decoding.stop)
        self._tokens: list[Token] = []
        self._count = 0
        self._finish: Finish | None = None
        self.begun = False
        """Whether any piece of text was given out."""

    @property
    def stopped(self) -> bool:
        """Whether a stop text has come: what follows is not part of the answer."""
        return self._text.stopped

    def take(self, part: TextGenerationStreamOutput) -> str:
        """The text that one token of a stream makes certain. Raises Internal PROMPT_DIFFERS with the last one."""
        piece = self._add(part.token, part.top_tokens, part.details.finish_reason if part.details is not None else None)
        if part.details is not None:
            self.check_prompt(part.details.input_length)
        self.begun = self.begun or bool(piece)
        return piece

    def take_whole(self, whole: TextGenerationOutput, prompt_tokens: int) -> None:
        """All at once. Raises Internal PROMPT_DIFFERS."""
        self.check_prompt(prompt_tokens)
        if whole.details is None:
            return
        tokens, top = whole.details.tokens, whole.details.top_tokens or ()
        for place, token in enumerate(tokens):
            last = place == len(tokens) - 1
            self._add(token, top[place] if top else None, whole.details.finish_reason if last else None)
            if self.stopped:
                return

    def check_prompt(self, found: int | None) -> None:
        """Raises Internal PROMPT_DIFFERS when the prompt was cut, or got special tokens twice, or nothing says so."""
        expected = len(self._work.encoded.tokens)
        if found != expected:
            message = "TGI saw {found} tokens of a prompt of {expected}: its answer is thrown away"
            raise Internal("PROMPT_DIFFERS", message, found="an unknown number of" if found in (None, -1) else found, expected=expected)

    def check_ended(self) -> None:
        """Raises Unavailable ENGINE_UNAVAILABLE when the answer breaks off."""
        if self._finish is None:
            raise away(self._name, "its answer broke off")

    def generation(self, latency_ms: float, seed: int | None) -> Generation:
        """The whole. What it costs to run an engine of one's own is not known here."""
        assert self._finish is not None  # noqa: S101  looked at before
        return Generation(
            self._text.text, self._finish, len(self._work.encoded.tokens), self._count, latency_ms, None, tuple(self._tokens), seed
        )

    def _add(self, token: Any, rivals: Sequence[Any] | None, reason: str | None) -> str:
        self._count += 1
        wanted = self._work.decoding.top_log_probabilities
        if wanted is not None:
            if wanted and not rivals:
                message = "the engine of model {name} cannot keep {field}: TGI gave none"
                raise FailedPrecondition("DECODING_UNSUPPORTED", message, name=self._name, field="decoding.top_log_probabilities")
            # Where several are equally probable, TGI gives more of them than were asked for.
            best = sorted((_top(rival, self._spell) for rival in rivals or ()), key=lambda top: -top.log_probability)[:wanted]
            self._tokens.append(Token(token.id, self._spell(token.id), _number(token.logprob), tuple(best)))
        # A turn that ends with the last token allowed is cut short by TGI's account.
        ended = reason == "eos_token" or (reason is not None and token.id == self._end)
        piece = "" if ended else self._text.push(token.id)
        if reason is not None:
            piece += self._text.finish()
            self._finish = Finish.END if ended else _FINISH.get(reason)
        if self._text.stopped:
            self._finish = Finish.STOP
        return piece


def _top(token: Mapping[str, Any], spell: Callable[[int], str]) -> TopToken:
    # The library makes values of them in a stream, and leaves them as they came in a whole answer; both can be read like this.
    return TopToken(token["id"], spell(token["id"]), _number(token["logprob"]))


def _number(log_probability: float | None) -> float:
    return -math.inf if log_probability is None else log_probability  # JSON has no infinity
