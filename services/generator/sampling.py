"""The next token of a row from the model's logits. Knows torch, no model and no batch."""

from __future__ import annotations

import torch
from torch import Tensor


def sample(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator) -> int:
    """A token drawn from softmax(logits / temperature), cut to the `top_k` most probable and then to the nucleus of mass `top_p`.

    `logits` is one row on the CPU. The draw inverts the distribution function in vocabulary order with one uniform number, in float64:
    rounding noise in the logits then moves borders by as much as the noise and nothing else, so that company in the batch does not
    change the text.
    The nucleus is the smallest set of most probable tokens whose mass reaches `top_p` (Holtzman et al. 2020, section 3.1).
    """
    scaled = logits.double() / temperature
    if top_k is not None and top_k < scaled.numel():
        kth = scaled.topk(top_k).values[-1]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    probabilities = scaled.softmax(-1)
    if top_p is not None and top_p < 1:
        ranked, order = probabilities.sort(descending=True, stable=True)
        outside = ranked.cumsum(-1) - ranked >= top_p
        probabilities = probabilities.index_fill(0, order[outside], 0.0)
    cumulative = probabilities.cumsum(-1)
    drawn = torch.rand(1, generator=generator, dtype=torch.float64) * cumulative[-1]
    token = int(torch.searchsorted(cumulative, drawn, right=True).item())
    # A number that rounds up to the whole mass would fall behind the last token.
    return token if token < cumulative.numel() else int(probabilities.nonzero()[-1].item())


def log_probabilities(logits: Tensor, token: int, top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Natural log-probability of `token` under softmax(logits), and the `top` most probable tokens with theirs, best first."""
    logs = logits.double().log_softmax(-1)
    if not top:
        return float(logs[token]), ()
    best = logs.topk(min(top, logs.numel()))
    return float(logs[token]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
