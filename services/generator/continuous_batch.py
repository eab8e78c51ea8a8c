"""Rows that generate together: admitted between steps, gone as soon as they end. Knows torch and the model, no events and no callers.

Keys and values of all rows lie in one buffer per layer, right-aligned: every row's newest token is in the same column, and what lies
left of a shorter row is masked. A step is one forward pass over all rows; newcomers are prefilled in a pass of their own and then join.
Those with soft prompts are prefilled apart, because their pass begins with embeddings: what shares a batch with them begins with tokens,
which for some models is not the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from services.generator import sampling
from services.generator.domain import Finish, Token, TopToken, Work
from services.generator.lora_rack import LoraRack
from services.generator.soft_prompts import SoftPrompts
from services.generator.text_stream import TextStream

_GROWTH = 64


class Row:
    """One request in the batch, with all that is its own: random numbers, text so far, limits."""

    def __init__(self, work: Work, text: TextStream, seed: int | None, virtual: int = 0, full: bool = False) -> None:
        """`virtual` tokens of a soft prompt come before the prompt. `full`: the adapter is a model of its own."""
        self.virtual = virtual
        self.full = work.adapter if full else None
        """The model whose weights answer; None for the base's."""
        self.adapter = None if full else work.adapter
        self.prompt, self.decoding, self.max_tokens = work.encoded.tokens, work.decoding, work.max_tokens
        self.text = text
        self.generator = torch.Generator()
        if seed is not None:
            self.generator.manual_seed(seed)
        self.last = -1
        self.count = 0
        self.tokens: list[Token] = []
        self.finish: Finish | None = None

    @property
    def length(self) -> int:
        """Tokens before the answer."""
        return self.virtual + len(self.prompt)

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are in the buffer: all but the newest."""
        return self.length + self.count - 1


class _Buffer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers does not type the hook of its subclasses
    """Keys and values of one layer with room to grow in place; appending to a DynamicLayer copies all of it at every step."""

    def __init__(self, keys: Tensor, values: Tensor, used: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor this
        self.dtype, self.device = keys.dtype, keys.device
        self.all_keys, self.all_values, self.used = keys, values, used
        self.keys, self.values = keys[:, :, :used], values[:, :, :used]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds the newest token of every row."""
        start, self.used = self.used, self.used + key_states.shape[-2]
        self.all_keys[:, :, start : self.used] = key_states
        self.all_values[:, :, start : self.used] = value_states
        self.keys, self.values = self.all_keys[:, :, : self.used], self.all_values[:, :, : self.used]
        return self.keys, self.values


class ContinuousBatch:
    """All rows of one model. Not safe for use by several threads at once."""

    def __init__(
        self, model: PreTrainedModel, rack: LoraRack, soft: SoftPrompts, end_ids: frozenset[int], token_text: Callable[[int], str]
    ) -> None:
        self._model, self._rack, self._soft, self._end_ids, self._token_text = model, rack, soft, end_ids, token_text
        self._device = model.device
        self.clear()

    @property
    def empty(self) -> bool:
        """Whether no row is under way."""
        return not self._rows

    def clear(self) -> None:
        """Forgets all rows."""
        self._rows: list[Row] = []
        self._cache = Cache(layers=[])
        self._mask = torch.zeros((0, 0), dtype=torch.long, device=self._device)
        self._used = 0

    @torch.inference_mode()
    def step(self, admit: Sequence[Row], leave: frozenset[Row]) -> list[tuple[Row, str]]:
        """Lets rows go, admits others, and gives every row its next token (newcomers two, the first from their prompt).

        Returns the rows that made progress with their new text; `finish` is set on those that have ended.
        """
        parts = [(self._rows, self._cache)]
        progress: list[tuple[Row, str]] = []
        for order in self._passes([row.adapter for row in admit]):
            newcomers, fresh = [admit[place] for place in order], DynamicCache()
            logits = self._read([row.adapter for row in newcomers], [row.prompt for row in newcomers], 1, fresh)
            progress += self._advance(newcomers, logits[:, -1])
            parts.append((newcomers, fresh))
        stays = [row for rows, _ in parts for row in rows if row.finish is None and row not in leave]
        if len(stays) != len(self._rows) or admit:
            self._rebuild(parts, sorted(stays, key=_by_adapter))
        if self._rows:
            progress += self._advance(self._rows, self._decode())
        if all(row.finish is not None for row in self._rows):
            self.clear()
        return progress

    @torch.inference_mode()
    def score(self, rows: Sequence[tuple[str | None, tuple[int, ...], tuple[int, ...]]]) -> list[tuple[float, ...]]:
        """Log-probabilities of completions after prompts, teacher-forced; a row is adapter, prompt and completion."""
        keep = max(len(completion) for _, _, completion in rows) + 1
        scores: list[tuple[float, ...]] = [()] * len(rows)
        for order in self._passes([adapter for adapter, _, _ in rows]):
            read = self._read([rows[place][0] for place in order], [rows[place][1] + rows[place][2] for place in order], keep, None)
            for place, logits in zip(order, read, strict=True):
                completion = torch.tensor(rows[place][2], device=self._device)
                # The distribution of a token is that after the token before it.
                logs = logits[-1 - len(completion) : -1].double().log_softmax(-1)
                scores[place] = tuple(logs.gather(-1, completion[:, None]).squeeze(-1).tolist())
        return scores

    def _passes(self, adapters: Sequence[str | None]) -> list[list[int]]:
        """Places of rows that are read together, equal adapters side by side; those with and without a soft prompt apart."""
        order = sorted(range(len(adapters)), key=lambda place: adapters[place] or "")
        bare = [place for place in order if not self._soft.length(adapters[place])]
        soft = [place for place in order if self._soft.length(adapters[place])]
        return [places for places in (bare, soft) if places]

    def _read(self, adapters: Sequence[str | None], texts: Sequence[tuple[int, ...]], keep: int, cache: Cache | None) -> Tensor:
        """Logits of the last `keep` tokens of texts that begin here, all after a soft prompt or none; what is read goes to `cache`."""
        virtual = [self._soft.length(adapter) for adapter in adapters]
        ids, mask, positions = self._pad([(0,) * count + text for count, text in zip(virtual, texts, strict=True)])
        begin: dict[str, Tensor] = {"input_ids": ids}
        if any(virtual):
            begin = {"inputs_embeds": self._soft.embed(ids, adapters, [ids.shape[1] - len(text) for text in texts])}
        self._rack.arrange([None if count else adapter for count, adapter in zip(virtual, adapters, strict=True)])
        output = self._model(
            **begin, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=cache is not None, logits_to_keep=keep
        )
        logits: Tensor = output.logits
        return logits

    def _decode(self) -> Tensor:
        if self._used == self._mask.shape[1]:
            self._rebuild([(self._rows, self._cache)], self._rows)
        self._used += 1
        even = len({row.cached for row in self._rows}) == 1
        # A soft prompt is past: its rows go through the base's own layers.
        self._rack.arrange([None if row.virtual else row.adapter for row in self._rows])
        output = self._model(
            input_ids=torch.tensor([[row.last] for row in self._rows], device=self._device),
            attention_mask=None if even else self._mask[:, : self._used],
            position_ids=torch.tensor([[row.cached] for row in self._rows], device=self._device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _pad(self, texts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor | None, Tensor]:
        """Ids padded on the left, the mask (None when nothing is padded) and positions from each row's first token."""
        width = max(map(len, texts))
        ids = torch.tensor([(0,) * (width - len(text)) + text for text in texts], device=self._device)
        lengths = torch.tensor([len(text) for text in texts], device=self._device)
        positions = torch.arange(width, device=self._device) - (width - lengths)[:, None]
        mask = None if int(lengths.min()) == width else (positions >= 0).long()
        return ids, mask, positions.clamp(min=0)

    def _rebuild(self, parts: Sequence[tuple[Sequence[Row], Cache]], rows: list[Row]) -> None:
        """Makes new buffers that hold `rows`, each from the part where it is now, with room for tokens to come."""
        if not rows:
            self.clear()
            return
        used = max(row.cached for row in rows)
        capacity = used + max(_GROWTH, used // 4)
        places = {row: place for place, row in enumerate(rows)}
        moves = []
        for held, cache in parts:
            pairs = [(source, places[row]) for source, row in enumerate(held) if row in places]
            if pairs:
                sources, targets = zip(*pairs, strict=True)
                moves.append((cache, torch.tensor(sources, device=self._device), torch.tensor(targets, device=self._device)))
        layers: list[Any] = []
        for number in range(len(moves[0][0].layers)):
            like = _states(moves[0][0], number)
            # Zeros, not whatever lies in memory: a masked column weighs nothing, but nothing times NaN is NaN.
            keys, values = (states.new_zeros((len(rows), states.shape[1], capacity, states.shape[3])) for states in like)
            for cache, source, target in moves:
                for new, old in zip((keys, values), _states(cache, number), strict=True):
                    width = min(used, old.shape[2])
                    new[target, :, used - width : used] = old[source][:, :, old.shape[2] - width :]
            layers.append(_Buffer(keys, values, used))
        lengths = torch.tensor([row.cached for row in rows], device=self._device)
        self._mask = (torch.arange(capacity, device=self._device) >= (used - lengths)[:, None]).long()
        self._rows, self._cache, self._used = rows, Cache(layers=layers), used

    def _advance(self, rows: Sequence[Row], logits: Tensor) -> list[tuple[Row, str]]:
        logits = logits.float().cpu()
        best = logits.argmax(-1).tolist()
        return [(row, self._take(row, logits[place], best[place])) for place, row in enumerate(rows)]

    def _take(self, row: Row, logits: Tensor, best: int) -> str:
        decoding = row.decoding
        if decoding.temperature:
            token = sampling.sample(logits, decoding.temperature, decoding.top_k, decoding.top_p, row.generator)
        else:
            token = best
        row.last, row.count = token, row.count + 1
        if decoding.top_log_probabilities is not None:
            own, top = sampling.log_probabilities(logits, token, decoding.top_log_probabilities)
            rivals = tuple(TopToken(rival, self._token_text(rival), value) for rival, value in top)
            row.tokens.append(Token(token, self._token_text(token), own, rivals))
        ended = token in self._end_ids
        piece = "" if ended else row.text.push(token)
        if ended or row.text.stopped or row.count >= row.max_tokens:
            piece += row.text.finish()
            row.finish = Finish.STOP if row.text.stopped else Finish.END if ended else Finish.LENGTH
        return piece


def _states(cache: Cache, number: int) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer that has seen tokens."""
    layer = cast(DynamicLayer, cache.layers[number])
    return cast(Tensor, layer.keys), cast(Tensor, layer.values)


def _by_adapter(row: Row) -> str:
    return row.adapter or ""
