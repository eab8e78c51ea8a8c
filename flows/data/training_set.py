"""Makes training examples of items, in one of four contexts. Knows neither prompts nor models.

- `none`: the question alone.
- `gold`: the gold passages, in order of the evidence.
- `raft` (Zhang et al. 2024, arXiv 2403.10131): with probability `gold_probability` the gold passages and `distractors` others; else as
  many others in all, so that the number of passages does not tell whether the gold is among them. Positions are shuffled.
- `retrieved`: the passages as served, in order of rank.

Where prompts show parents of passages, a parent counts as what its passages are: gold with a gold passage in it, so that no other passage
of it is a distractor, and one of the passages shown, however many of its own were found.

The answer is the first reference; for an item that is not answerable, the abstention text. Without gold, RAFT's answer is the abstention
text or the reference, as `without_gold` says; with `quote`, where gold is shown the answer begins with a sentence of it. What is drawn
for an item depends on the seed and the item alone, so it is the same in sets of every size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy

from flows.data.quotes import quoted
from flows.data.split import place
from flows.errors import TrialError, UserError
from flows.records import Example, Hit, Item, Passage

ContextKind = Literal["none", "gold", "raft", "retrieved"]


@dataclass(frozen=True, slots=True)
class TrainingContext:
    """What a training example shows beside the question. All but `kind` and `max_gold` belong to `raft`."""

    kind: ContextKind
    max_gold: int = 3
    """At most so many gold passages, for `gold` and `raft`."""
    gold_probability: float = 0.8
    distractors: int = 3
    distractor_source: Literal["retrieved", "random"] = "retrieved"
    """`retrieved`: the highest-ranked hits that are not gold (hard); `random`: any passages of the corpus that are not gold."""
    without_gold: Literal["abstain", "answer"] = "abstain"
    quote: bool = False
    """Answers quote the gold passage first, where a sentence of it holds the evidence."""

    def __post_init__(self) -> None:
        if not 0 <= self.gold_probability <= 1:
            raise UserError(f"raft.gold_probability is {self.gold_probability}: set it from 0 to 1.")
        if self.distractors < 0:
            raise UserError(f"raft.distractors is {self.distractors}: set it to 0 or more.")
        if self.max_gold < 1:
            raise UserError(f"max_gold is {self.max_gold}: set it to 1 or more.")


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Examples in order of the items. `short_count` counts those with fewer distractors than asked for: too few were there;
    `unquoted_count` those that show gold and should quote it, but hold no sentence that is the evidence."""

    examples: tuple[Example, ...]
    short_count: int = 0
    unquoted_count: int = 0


def trainable(
    items: Iterable[Item], gold: Mapping[str, Sequence[str]], kinds: Iterable[ContextKind]
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Items that every context of `kinds` can use, and the ids of the others. Call it before sizes are cut: all contexts then share items.

    `gold` and `raft` need a gold passage; `raft` also takes items that are not answerable and shows them distractors.
    """
    wanted = set(kinds)
    kept, left_out = [], []
    for item in items:
        usable = bool(gold.get(item.id)) or ("gold" not in wanted and ("raft" not in wanted or not item.answerable))
        if usable:
            kept.append(item)
        else:
            left_out.append(item.id)
    return tuple(kept), tuple(left_out)


def training_set(
    items: Iterable[Item],
    context: TrainingContext,
    *,
    passages: Mapping[str, Passage],
    gold: Mapping[str, Sequence[str]],
    hits: Mapping[str, Sequence[Hit]],
    abstention: str,
    seed: int,
    parents: Mapping[str, str] | None = None,
) -> TrainingSet:
    """One example an item. `hits`, by item, serves `retrieved` and hard distractors; `parents` names what prompts show instead of each
    passage. TrialError when an item lacks what it needs."""
    corpus, items = tuple(passages), tuple(items)
    parents = parents or {}
    make: Mapping[ContextKind, Callable[[Item], Example]] = {
        "none": lambda item: Example(item.id, item.question, (), _answer(item, abstention)),
        "gold": lambda item: Example(
            item.id, item.question, _gold(item, gold, context, parents), _answer(item, abstention), gold_shown=True
        ),
        "raft": partial(_raft, context=context, corpus=corpus, gold=gold, hits=hits, abstention=abstention, seed=seed, parents=parents),
        "retrieved": partial(_retrieved, gold=gold, hits=hits, abstention=abstention),
    }
    examples = tuple(make[context.kind](item) for item in items)
    if unknown := [name for example in examples for name in example.passages if name not in passages]:
        raise TrialError(f"{len(unknown)} passages of training examples are not in the corpus, such as {unknown[0]}: retrieve again.")
    short = unquoted = 0
    if context.kind == "raft":
        short = sum(len(_texts(one.passages, parents)) < _wanted(one.item, gold, context, parents) for one in examples)
    if context.quote:
        by_id = {item.id: item for item in items}
        quoting = [_quoting(one, by_id[one.item], passages, gold, parents) if one.gold_shown else one for one in examples]
        unquoted = sum(one.answer == plain.answer for one, plain in zip(quoting, examples, strict=True) if one.gold_shown)
        examples = tuple(quoting)
    return TrainingSet(examples, short, unquoted)


def _quoting(
    example: Example,
    item: Item,
    passages: Mapping[str, Passage],
    gold: Mapping[str, Sequence[str]],
    parents: Mapping[str, str],
) -> Example:
    shown = _texts(example.passages, parents)
    own = [name for name in gold[item.id] if name in example.passages]
    numbered = [(shown.index(parents.get(name, name)) + 1, passages[name].text) for name in own]
    # Evidence that is the name of a passage stands for all of its text.
    texts = [passages[one.text].text if one.text in passages else one.text for one in item.evidence]
    return replace(example, answer=quoted(example.answer, item.references, texts, numbered) or example.answer)


def _answer(item: Item, abstention: str) -> str:
    return item.references[0] if item.answerable else abstention


def _texts(names: Iterable[str], parents: Mapping[str, str]) -> tuple[str, ...]:
    """The texts that prompts show for these passages: parents, each once, or the passages."""
    return tuple(dict.fromkeys(parents.get(name, name) for name in names))


def _gold(item: Item, gold: Mapping[str, Sequence[str]], context: TrainingContext, parents: Mapping[str, str]) -> tuple[str, ...]:
    names = gold.get(item.id, ())
    kept = frozenset(_texts(names, parents)[: context.max_gold])
    if not kept:
        raise TrialError(
            f"Item {item.id} has no gold passage: leave it out, by `trainable`, before training sets with context {context.kind}."
        )
    return tuple(name for name in names if parents.get(name, name) in kept)


def _wanted(item: str, gold: Mapping[str, Sequence[str]], context: TrainingContext, parents: Mapping[str, str]) -> int:
    # An item without gold shows as many passages as one with a single gold passage.
    return context.distractors + max(1, min(len(_texts(gold.get(item, ()), parents)), context.max_gold))


def _raft(
    item: Item,
    *,
    context: TrainingContext,
    corpus: Sequence[str],
    gold: Mapping[str, Sequence[str]],
    hits: Mapping[str, Sequence[Hit]],
    abstention: str,
    seed: int,
    parents: Mapping[str, str],
) -> Example:
    all_gold = frozenset(_texts(gold.get(item.id, ()), parents))
    shown = item.answerable and place(seed, "gold", item.id) < context.gold_probability
    own = _gold(item, gold, context, parents) if item.answerable else ()
    own = own if shown else ()
    count = _wanted(item.id, gold, context, parents) - len(_texts(own, parents))
    if context.distractor_source == "retrieved":
        others = _one_each((hit.passage for hit in _ranked(item, hits)), all_gold, parents)[:count]
    else:
        others = _draw(corpus, all_gold, count, int(place(seed, "distractors", item.id) * 2**53), parents)
    # By what is shown: a parent with many passages would else stand at the place of the first of them.
    together = sorted((*own, *others), key=lambda name: place(seed, "position", item.id, parents.get(name, name)))
    abstains = not item.answerable or (not shown and context.without_gold == "abstain")
    return Example(item.id, item.question, tuple(together), abstention if abstains else item.references[0], gold_shown=shown)


def _one_each(names: Iterable[str], excluded: frozenset[str], parents: Mapping[str, str]) -> list[str]:
    """The first passage of each text that is not excluded."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(parents.get(name, name), name)
    return [name for text, name in found.items() if text not in excluded]


def _draw(corpus: Sequence[str], excluded: frozenset[str], count: int, seed: int, parents: Mapping[str, str]) -> list[str]:
    random = numpy.random.default_rng(seed)
    # The excluded are few, so drawing that many more is always enough; but many passages may have one parent.
    size = len(corpus) if parents else min(count + len(excluded), len(corpus))
    drawn = random.choice(len(corpus), size=size, replace=False)
    return _one_each((corpus[n] for n in drawn), excluded, parents)[:count]


def _retrieved(item: Item, *, gold: Mapping[str, Sequence[str]], hits: Mapping[str, Sequence[Hit]], abstention: str) -> Example:
    shown = tuple(hit.passage for hit in _ranked(item, hits))
    held = not set(gold.get(item.id, ())).isdisjoint(shown)
    return Example(item.id, item.question, shown, _answer(item, abstention), gold_shown=held)


def _ranked(item: Item, hits: Mapping[str, Sequence[Hit]]) -> list[Hit]:
    if item.id not in hits:
        raise TrialError(f"Nothing was retrieved for training item {item.id}: take a snapshot of the training questions as well.")
    return sorted(hits[item.id], key=lambda hit: hit.rank)
