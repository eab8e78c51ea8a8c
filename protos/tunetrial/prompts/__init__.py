"""The prompt templates that are part of the contract: whoever trains and whoever asks renders the same text.

`plain/v1` shows passages as a list and gives no instructions, for small models trained on just that. `numbered/v1` is for
instruction-tuned models: passages carry numbers that the model is told to cite, and a system turn says what to do.
"""

from importlib.resources import files

from tunetrial.common.v1 import common_pb2

ABSTENTIONS = ("unanswerable", "i don't know", "the passages do not say", "not answerable from the passages")

_SYSTEM = (
    "Answer the question in as few words as you can. If passages are given, use only them and cite the number of each passage "
    "that you use in brackets, like [1]. If they do not hold the answer, say: unanswerable."
)
_SYSTEMS = {"plain/v1": None, "numbered/v1": _SYSTEM}


def names() -> tuple[str, ...]:
    """Names of the templates that ship."""
    return tuple(_SYSTEMS)


def load(name: str) -> common_pb2.PromptTemplate:
    """The template of that name. Raises KeyError when there is none."""
    system = _SYSTEMS[name]
    file = name.replace("/", ".") + ".jinja"
    user = (files(__name__) / file).read_text(encoding="utf-8")
    template = common_pb2.PromptTemplate(name=name, user=user, abstentions=ABSTENTIONS)
    if system is not None:
        template.system = system
    return template
