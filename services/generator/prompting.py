"""From a question and passages to a conversation, and from an answer back to its passages. Knows no model, no engine and no wire."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from services.common.errors import InvalidArgument
from services.generator.domain import Passage, Prompt, Turn

# Text, not HTML; nothing is trimmed, so that a template file gives exactly its own text, as it did when training examples were made.
_ENVIRONMENT = SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
_MARKS = re.compile(r"\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]")
_TRIVIAL = frozenset({"", "yes", "no", "true", "false", "none"})


@dataclass(frozen=True, slots=True)
class Example:
    """A worked example of a few-shot prompt."""

    question: str
    passages: tuple[Passage, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Template:
    """How a question and its passages become a conversation. `user` is the Jinja text of the user's turn."""

    name: str
    user: str
    system: str | None = None
    examples: tuple[Example, ...] = ()
    abstentions: tuple[str, ...] = ()

    def render(self, question: str, passages: Sequence[Passage]) -> tuple[Turn, ...]:
        """The conversation, ending with the user's turn. Raises InvalidArgument TEMPLATE_INVALID."""
        turns = [] if self.system is None else [Turn("system", self.system)]
        for example in self.examples:
            turns += [Turn("user", self._user(example.question, example.passages)), Turn("assistant", example.answer)]
        return (*turns, Turn("user", self._user(question, passages)))

    def abstains(self, answer: str) -> bool:
        """True when the answer is one of the abstentions: compared without case, outer space and final full stop."""
        return _plain(answer) in {_plain(text) for text in self.abstentions}

    def _user(self, question: str, passages: Sequence[Passage]) -> str:
        shown = [{"id": passage.id, "text": passage.text, "title": passage.title, "heading": passage.heading} for passage in passages]
        try:
            return _compiled(self.user).render(question=question, passages=shown)
        # A sandboxed template can fail like any program: an unknown name, a division by zero, a number used as text.
        except Exception as error:
            raise InvalidArgument(
                "TEMPLATE_INVALID",
                "template {name} does not render: {error}; it sees `question` and `passages`",
                name=self.name or "without a name",
                error=f"{type(error).__name__}: {error}",
                field="template.user",
            ) from error


@functools.lru_cache(maxsize=256)
def _compiled(text: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(text)


def prompt_hash(prompt: Prompt) -> str:
    """sha256, hexadecimal, of bare text in UTF-8 or of a conversation as canonical JSON: a list of objects with sorted keys, no spaces."""
    text = prompt if isinstance(prompt, str) else canonical(prompt)
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(turns: Sequence[Turn]) -> str:
    """Turns as canonical JSON."""
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return json.dumps(messages, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def marked(answer: str, passages: Sequence[Passage]) -> tuple[str, ...]:
    """Ids of the passages whose numbers the answer gives in brackets, `[1]` or `[1, 3]`, in the order shown; others are no marks."""
    numbers = {int(number) for group in _MARKS.findall(answer) for number in group.split(",")}
    return tuple(passage.id for number, passage in enumerate(passages, 1) if number in numbers)


def verbatim(answer: str, passages: Sequence[Passage]) -> tuple[str, ...]:
    """Ids of the passages that hold the answer word for word, without regard to case, spacing and final full stop, in the order shown.

    An answer that would be found anywhere (yes, no, a single character) leans on nothing.
    """
    wanted = _plain(answer)
    if wanted in _TRIVIAL or len(wanted) < 2:
        return ()
    pattern = re.compile(rf"(?<!\w){re.escape(wanted)}(?!\w)")
    return tuple(passage.id for passage in passages if pattern.search(_folded(passage.text)))


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _plain(text: str) -> str:
    return _folded(text).removesuffix(".").rstrip()
