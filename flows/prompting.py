"""Renders questions and passages to conversations: the same for training examples and for prompts. Knows no model and no service.

The generator renders the same template on its side and returns the hash of what it sent; a stage that compares the two hashes knows that
the model saw what it was trained on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import jinja2
from jinja2.sandbox import SandboxedEnvironment
from tunetrial import prompts
from tunetrial.common.v1 import common_pb2

from flows.errors import UserError
from flows.records import Passage
from flows.spec import PromptSpec

Turns = list[dict[str, str]]

_ENVIRONMENT = SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)


@dataclass(frozen=True, slots=True)
class Shot:
    """A worked example: a question, the passages shown with it, and its answer."""

    question: str
    passages: tuple[Passage, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt template. `user` is the Jinja text of the user's turn and sees `question` and `passages`."""

    name: str
    user: str
    system: str | None
    abstentions: tuple[str, ...]

    def turns(self, question: str, passages: Sequence[Passage], shots: Sequence[Shot] = (), answer: str | None = None) -> Turns:
        """The conversation; with `answer`, the training example that ends in it."""
        turns = [] if self.system is None else [_turn("system", self.system)]
        for shot in shots:
            turns += [_turn("user", self._user(shot.question, shot.passages)), _turn("assistant", shot.answer)]
        turns.append(_turn("user", self._user(question, passages)))
        return turns if answer is None else [*turns, _turn("assistant", answer)]

    def message(self, shots: Sequence[Shot] = ()) -> common_pb2.PromptTemplate:
        """The template as the generator takes it."""
        message = common_pb2.PromptTemplate(name=self.name, user=self.user, abstentions=self.abstentions)
        if self.system is not None:
            message.system = self.system
        for shot in shots:
            message.examples.append(
                common_pb2.PromptExample(
                    question=shot.question, passages=[passage_message(passage) for passage in shot.passages], answer=shot.answer
                )
            )
        return message

    def _user(self, question: str, passages: Sequence[Passage]) -> str:
        return _compiled(self.user).render(question=question, passages=passages)


@lru_cache(maxsize=16)
def _compiled(text: str) -> jinja2.Template:
    # A trial renders one text tens of thousands of times, and compiling takes far longer than rendering.
    return _ENVIRONMENT.from_string(text)


def load_template(prompt: PromptSpec, folder: Path) -> Template:
    """The template that a spec asks for; `folder` is the spec's own. Raises UserError when there is none or it does not render."""
    if prompt.template.endswith(".jinja"):
        path = folder / prompt.template
        try:
            name, user, system = prompt.template, path.read_text(encoding="utf-8"), None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"prompt.template: {path} cannot be read: {error}") from None
    else:
        try:
            shipped = prompts.load(prompt.template)
        except KeyError:
            known = ", ".join(prompts.names())
            raise UserError(
                f"prompt.template: there is no {prompt.template!r}; there are {known}, or give a file that ends in .jinja"
            ) from None
        name, user = shipped.name, shipped.user
        system = shipped.system if shipped.HasField("system") else None
    template = Template(name, user, prompt.system if prompt.system is not None else system, (*prompts.ABSTENTIONS, *prompt.abstentions))
    try:
        template.turns("question", [Passage("d#1", "d", "text", "title", "heading")])
    except jinja2.TemplateError as error:
        raise UserError(f"prompt.template: {name} does not render: {error}. It sees `question` and `passages` only") from None
    return template


def prompt_hash(turns: Turns) -> str:
    """sha256 of the turns' canonical JSON, hexadecimal; the contract's `prompt_hash`."""
    text = json.dumps(turns, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def passage_message(passage: Passage) -> common_pb2.Passage:
    """A passage as the services take it."""
    return common_pb2.Passage(id=passage.id, text=passage.text, document=passage.document, title=passage.title, heading=passage.heading)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
