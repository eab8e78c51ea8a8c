"""What vLLM answers to a completion, whole or in pieces, as a generation. Knows no connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from services.common.errors import Internal
from services.generator.domain import Finish, Generation, Token, TopToken, Work
from services.generator.openai_errors import unsupported
from services.generator.replicas import away


class Answer:
    """Takes what comes and adds it up."""

    def __init__(self, name: str, spell: Callable[[int], str], *, wanted: int | None) -> None:
        """`name` is the base's, for errors; `spell` gives the text of a token; `wanted` rivals of each, None for no log-probabilities."""
        self._name, self._spell, self._wanted = name, spell, wanted
        self.begun = False
        """Whether any text has come."""
        self._texts: list[str] = []
        self._tokens: list[Token] = []
        self._finish: Finish | None = None
        self._prompt_tokens = self._completion_tokens = 0

    def take(self, part: Any, model: str) -> str:
        """The text of a part, which is a completion of OpenAI's protocol as JSON.

        Raises Internal MODEL_DIFFERS when it is not of `model`, Unavailable ENGINE_UNAVAILABLE when it is something else.
        """
        if not isinstance(part, dict) or not part.keys() >= {"model", "choices"}:
            raise away(self._name, "it sent what is no completion")
        if part["model"] != model:
            raise Internal("MODEL_DIFFERS", "vLLM was asked for {model} and answered as {other}", model=model, other=part["model"])
        if usage := part.get("usage"):
            self._prompt_tokens, self._completion_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        if not part["choices"]:
            return ""
        choice = part["choices"][0]
        text: str = choice["text"]
        self.begun = self.begun or bool(text)
        self._texts.append(text)
        if self._wanted is not None and (found := choice.get("logprobs")):
            self._add_tokens(found)
        reason: str | None = choice["finish_reason"]
        if reason is not None and reason not in ("stop", "length"):  # "abort", when vLLM is told to end
            raise away(self._name, f"it ended its answer with {reason}")
        if reason is not None:
            stopped_by = choice.get("stop_reason")
            self._finish = Finish.LENGTH if reason == "length" else Finish.STOP if isinstance(stopped_by, str) else Finish.END
        return text

    def check_ended(self) -> None:
        """Raises Unavailable ENGINE_UNAVAILABLE when the answer breaks off, FailedPrecondition DECODING_UNSUPPORTED when a part lacks."""
        if self._finish is None:
            raise away(self._name, "its answer broke off")
        if self._wanted is not None and self._completion_tokens and not self._tokens:
            raise unsupported(self._name, "logprobs", "vLLM gave none")

    def generation(self, work: Work, latency_ms: float, seed: int | None) -> Generation:
        """The whole. What it costs to run an engine of one's own is not known here."""
        assert self._finish is not None  # noqa: S101  looked at before
        text = "".join(self._texts)
        return Generation(
            text,
            self._finish,
            self._prompt_tokens or len(work.encoded.tokens),
            self._completion_tokens,
            latency_ms,
            None,
            tuple(self._tokens),
            seed,
        )

    def _add_tokens(self, found: Mapping[str, Any]) -> None:
        for name, value, rivals in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"] or (), strict=True):
            token = _id(name)
            self._tokens.append(Token(token, self._spell(token), value, self._top(rivals or {})))

    def _top(self, rivals: Mapping[str, float]) -> tuple[TopToken, ...]:
        # vLLM adds the token that was taken where it is not among the best.
        best = sorted(rivals.items(), key=lambda rival: -rival[1])[: self._wanted]
        return tuple(TopToken(_id(name), self._spell(_id(name)), value) for name, value in best)


def _id(name: str) -> int:
    return int(name.removeprefix("token_id:"))
