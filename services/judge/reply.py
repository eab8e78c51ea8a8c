"""Reads what a judge model wrote: steps, a score, the probabilities of scores. Knows neither the endpoint nor the prompt.

A reply holds a score when it is nothing but a number, or has a labelled line (`Score: 4`, `- Accuracy: 4/5`, `**Rating**: 4 out of 5`) or
JSON member (`"score": 4`); several count only when they are equal. Markdown marks and a leading `<think>...</think>` are passed over.
Whatever else a reply holds - prose that mentions a number, a range, a number off the scale, another denominator - gives no score: it is
missing, never clipped and never a default.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from services.judge.domain import Missing

_NUMBER = r"(?P<value>[-+]?[0-9]+(?:\.[0-9]+)?)"
_OUT_OF = r"(?:\s*(?:/|out\s+of)\s*(?P<of>[0-9]+))?"
# Behind the number nothing may follow that would make it another: digits, a range, a comma with digits, a per cent sign.
_END = r"[\s*_.`'\")\]}]*"
_BARE = re.compile(rf"[\s*_`'\"(\[]*{_NUMBER}{_OUT_OF}{_END}")
_JSON = re.compile(rf"\"(?P<label>[A-Za-z_ ]{{1,64}})\"\s*:\s*\"?{_NUMBER}{_OUT_OF}\"?\s*(?=[,}}])", re.IGNORECASE)
_THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_REFUSAL = re.compile(
    r"\W*(?:i(?:'|\u2019)?m\s+(?:very\s+)?sorry|i\s+am\s+sorry|sorry|i\s+apologi[sz]e|as\s+an?\s+ai\b"
    r"|i\s+(?:cannot|can(?:'|\u2019)?t|can\s+not|won(?:'|\u2019)?t|will\s+not|must\s+decline\s+to|am\s+(?:not\s+able|unable)\s+to)\s+"
    r"(?:assist|help|comply|answer|respond|evaluate|rate|score|judge|provide|fulfil|fulfill|engage|do\s+(?:that|this)))\b"
    r"|\W*i(?:'|\u2019)m\s+(?:not\s+able|unable)\s+to\b",
    re.IGNORECASE,
)
_STEP = re.compile(r"\s{0,3}(?:\*\*|#+\s*)?(?:step\s+)?(?P<number>[0-9]{1,2})\s*[.):]\s*(?P<text>\S.*)", re.IGNORECASE)
# Endpoints compute in half precision: probabilities of one position may add up to a little more than 1.
_ROUNDING = 0.01
# Marks that tokenizers put for a space where a server sends raw pieces.
_SPACES = " \t\r\n\u2581\u0120\u010a"


@dataclass(frozen=True, slots=True)
class Score:
    """A score and the characters of the reply that hold it."""

    value: float
    start: int
    end: int


def find_score(reply: str, criterion: str, low: int, high: int) -> Score | None:
    """The one score in a reply; None when there is none on the scale."""
    start = _begin(reply)
    bare = _BARE.fullmatch(reply, start)
    matches = [bare] if bare else [*_labelled(criterion).finditer(reply, start)]
    if not matches:
        names = {"score", "rating", criterion.lower()}
        matches = [match for match in _JSON.finditer(reply, start) if match["label"].lower() in names]
    scores = [Score(float(match["value"]), *match.span("value")) for match in matches if match["of"] is None or int(match["of"]) == high]
    if not scores or len(scores) < len(matches) or len({score.value for score in scores}) > 1:
        return None
    return scores[0] if low <= scores[0].value <= high else None


def _begin(reply: str) -> int:
    thought = _THOUGHT.match(reply)
    return thought.end() if thought else 0


def _labelled(criterion: str) -> re.Pattern[str]:
    label = rf"(?:(?:final|overall)\s+)?(?:{re.escape(criterion)}\s+)?(?:score|rating)|{re.escape(criterion)}"
    return re.compile(
        rf"^[\s*_>#-]*(?:{label})(?:\s*\([^()\n]*\))?[\s*_]*[:=][\s*_]*{_NUMBER}{_OUT_OF}[ \t*_.`]*$", re.IGNORECASE | re.MULTILINE
    )


def why_missing(reply: str, cut: bool) -> Missing:
    """Why a reply without a score has none. `cut` says that its token limit ended it.

    A refusal is known by how it opens ("I'm sorry", "I cannot assist", "As an AI", ...); endpoints that mark refusals are asked first.
    """
    if _REFUSAL.match(reply, _begin(reply)):
        return Missing.REFUSED
    return Missing.TRUNCATED if cut else Missing.UNPARSED


def numbered_steps(reply: str) -> tuple[str, ...]:
    """The items of the numbered list in a reply, which counts from 1 without gaps; () when there is none.

    Lines right below an item, and its bullets, belong to it; what stands before the list, or behind a blank line after it, does not.
    """
    steps: list[list[str]] = []
    open_item = False
    for line in reply[_begin(reply) :].splitlines():
        match = _STEP.match(line)
        if match is not None and int(match["number"]) == len(steps) + 1:
            steps.append([match["text"].strip()])
            open_item = True
        elif match is not None and not line.startswith("  "):
            return ()
        elif not line.strip():
            open_item = False
        elif open_item or (steps and re.match(r"\s+\S", line)):
            steps[-1].append(line.strip())
    return tuple(" ".join(parts).replace("**", "") for parts in steps)


def expected_score(alternatives: Sequence[tuple[str, float]], low: int, high: int) -> tuple[float | None, float]:
    """Sum of p(s) * s over the scores, normalised over their mass (G-Eval, equation 1), and the probability off the scale.

    `alternatives` are tokens with natural-log probabilities at one position; all tokenisations of a score ("4", " 4") add up. What the
    endpoint did not list counts as off the scale. The score is None when no mass lies on the scale. Raises ValueError for numbers that
    are no probabilities.
    """
    mass = dict.fromkeys(range(low, high + 1), 0.0)
    for token, log_probability in alternatives:
        if not log_probability <= _ROUNDING:
            raise ValueError(f"log-probability {log_probability}")
        text = token.strip(_SPACES)
        if re.fullmatch("[0-9]", text) and int(text) in mass:
            mass[int(text)] += math.exp(log_probability)
    total = math.fsum(mass.values())
    if total > 1 + _ROUNDING:
        raise ValueError(f"probabilities that add up to {total:.3f}")
    score = math.fsum(p * s for s, p in mass.items()) / total if total > 0 else None
    return score, max(0.0, 1.0 - total)
