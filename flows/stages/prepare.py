"""Stage 1: reads the data, cuts passages, splits by cluster, checks for leaks. Asks no service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import anyio.to_thread

from flows.chunking import cut_by_encoder, cut_documents, token_spans
from flows.data.encoder import EncoderTokens
from flows.data.folder import read_corpus
from flows.data.gold import map_gold
from flows.data.knowledge import Knowledge
from flows.data.leakage import Leak, find_leaks, resolve_leaks
from flows.data.parents import Parents, parent_texts, places
from flows.data.preferences import Preferences
from flows.data.readers import READERS
from flows.data.source import Source
from flows.data.split import few_shot_items, split_items, training_items
from flows.data.training_set import ContextKind, trainable
from flows.data_spec import ChunkSpec, DataSpec, SourceSpec
from flows.errors import UserError
from flows.records import Document, Item, Passage, Place
from flows.spec import Spec
from flows.store import digest
from flows.training_spec import TrainingSpec
from flows.trial import Trial

# Raise it when the code of this stage or of the readers changes what comes out.
VERSION = 4

_OPTIONS = {"answers": ("bioasq",), "long_answers": ("nq",), "limit": ("nq", "nq_open"), "columns": ("table",), "split": ("beir",)}
"""Which readers take which option of a source."""


@dataclass(frozen=True)
class Prepared:
    """What the other stages work on. `pool` is in the order in which training sets are cut from it; `shots` are not in any training set."""

    key: str
    test: tuple[Item, ...]
    pool: tuple[Item, ...]
    shots: tuple[Item, ...]
    passages: tuple[Passage, ...]
    gold: Mapping[str, tuple[str, ...]]
    leaks: tuple[Leak, ...]
    counts: Mapping[str, Any]
    parents: Parents | None = None
    """What prompts show instead of passages; None where they show the passages."""
    knowledge: Mapping[str, Knowledge] = field(default_factory=dict)
    """What bases know of training questions, by the families whose base was asked; that is found out after this stage."""
    pairs: Mapping[str, Preferences] = field(default_factory=dict)
    """Pairs of answers, by the families that learn from such; read or made after this stage."""

    def of_family(self, family: str) -> Prepared:
        """The same with the pool from which this family's training sets are cut."""
        known = self.knowledge.get(family)
        return replace(self, pool=tuple(item for item in self.pool if known.keeps(item.id))) if known else self

    @property
    def untouched(self) -> tuple[Item, ...]:
        """Items of the pool that are no few-shot examples: all that training sets may reach."""
        return self.pool[: len(self.pool) - len(self.shots)]

    @property
    def stand_alone(self) -> bool:
        """Whether questions make sense without their document."""
        return bool(self.counts["stand_alone"])

    @cached_property
    def by_id(self) -> dict[str, Passage]:
        """Passages by id."""
        return {passage.id: passage for passage in self.passages}

    def shown(self, names: Iterable[str]) -> tuple[Passage, ...]:
        """What a prompt shows for these passages: themselves, or their parents, each once, in the order of its first."""
        return self._shown(tuple(names))

    @cached_property
    def _shown(self) -> Callable[[tuple[str, ...]], tuple[Passage, ...]]:
        # Kept, because every arm shows the same.
        @cache
        def shown(names: tuple[str, ...]) -> tuple[Passage, ...]:
            passages = tuple(self.by_id[name] for name in names)
            return self.parents.shown(passages) if self.parents else passages

        return shown

    @cached_property
    def parent_of(self) -> Mapping[str, str]:
        """The parent of each passage; empty where prompts show the passages."""
        return {name: place.parent for name, place in self.parents.places.items()} if self.parents else {}


@dataclass(frozen=True, slots=True)
class _Gold:
    item: str
    passages: tuple[str, ...]


async def prepare(trial: Trial) -> Prepared:
    """Items, passages and leakage findings; read from the store where they were prepared before."""
    read = {name: trial.inputs[name] for name in ("files", "corpus", "tokenizer") if name in trial.inputs}
    inputs = {"version": VERSION, **read, "spec": _relevant(trial)}
    key = digest(inputs)
    if not trial.store.has("prepared", key):
        trial.progress.stage("prepare")
        prepared = await anyio.to_thread.run_sync(make, trial, key)
        write = trial.store.write_records
        for name, items in (("test", prepared.test), ("pool", prepared.pool), ("shots", prepared.shots)):
            write("prepared", key, f"{name}.parquet", Item, items)
        write("prepared", key, "passages.parquet", Passage, prepared.passages)
        if prepared.parents:
            write("prepared", key, "parents.parquet", Passage, prepared.parents.texts.values())
            write("prepared", key, "places.parquet", Place, prepared.parents.places.values())
        write("prepared", key, "gold.parquet", _Gold, [_Gold(item, found) for item, found in prepared.gold.items()])
        write("prepared", key, "leaks.parquet", Leak, prepared.leaks)
        trial.store.write_json("prepared", key, "counts.json", dict(prepared.counts))
        trial.store.finish("prepared", key, inputs)
        beyond = prepared.counts["passages_cut"]
        said = f", {beyond} of them longer than the encoder reads" if beyond else ""
        trial.progress.finish("prepare", f"{len(prepared.test)} test questions, {len(prepared.passages)} passages{said}")
    return _read(trial, key)


def _relevant(trial: Trial) -> dict[str, Any]:
    spec = trial.spec
    return {
        "data": spec.data.model_dump(mode="json"),
        "chunk": spec.retrieval.chunk.model_dump(mode="json"),
        "sizes": sorted({size for training in _on_questions(spec) for size in training.sizes}),
        "contexts": sorted({training.context_name for training in _on_questions(spec)}),
        "shots": max((arm.shots for arm in spec.arms.values()), default=0),
        **({"chosen_by_knowledge": True} if _chosen_by_knowledge(spec) else {}),
    }


def _on_questions(spec: Spec) -> list[TrainingSpec]:
    """Families that train on questions of the pool; the others bring pairs of answers."""
    return [training for training in spec.training.values() if training.preferences is None]


def _chosen_by_knowledge(spec: Spec) -> bool:
    """Whether a family leaves out training questions by what its base knows, and may so reach deeper into the pool than its sizes say."""
    return any(training.knowledge is not None and training.knowledge.filters for training in spec.training.values())


def _read(trial: Trial, key: str) -> Prepared:
    read = trial.store.read_records
    items = {name: read("prepared", key, f"{name}.parquet", Item) for name in ("test", "pool", "shots")}
    return Prepared(
        key,
        items["test"],
        items["pool"],
        items["shots"],
        read("prepared", key, "passages.parquet", Passage),
        {row.item: row.passages for row in read("prepared", key, "gold.parquet", _Gold)},
        read("prepared", key, "leaks.parquet", Leak),
        trial.store.read_json("prepared", key, "counts.json"),
        _parents(trial, read("prepared", key, "parents.parquet", Passage), read("prepared", key, "places.parquet", Place))
        if trial.spec.retrieval.chunk.parent != "none"
        else None,
    )


def _parents(trial: Trial, texts: Iterable[Passage], found: Iterable[Place]) -> Parents:
    chunking = trial.spec.retrieval.chunk
    spans = token_spans(chunking, trial.encoder_tokens)
    return Parents({text.id: text for text in texts}, {place.passage: place for place in found}, chunking.shown_tokens, spans)


def make(trial: Trial, key: str) -> Prepared:
    """Does the work of this stage. Raises UserError, DataError and LeakageError with what to change."""
    spec = trial.spec
    sources = list(read_sources(spec.data, trial.loaded.resolve))
    items = unique([item for source in sources for item in source.items])
    documents = merged([document for source in sources for document in source.documents])
    if not documents and any(arm.rag for arm in spec.arms.values()):
        raise UserError("data: these sources bring no documents to retrieve from; name a folder of texts under data.corpus")
    chunking = spec.retrieval.chunk
    pieces = list(cut_documents(documents, chunking, trial.encoder_tokens))
    passages = tuple(piece.passage for piece in pieces)
    gold = map_gold(items, passages)
    split = split_items(items, test_items=spec.data.test_items, seed=spec.data.seed)
    kinds: set[ContextKind] = {training.context_name for training in _on_questions(spec)}  # type: ignore[misc]  # names checked by the spec
    usable, unusable = trainable(split.pool, gold.passages, kinds)
    stand_alone = all(source.stand_alone for source in sources)
    leaks = find_leaks({"test": split.test, "training": usable}, threshold=spec.data.near_duplicate, stand_alone=stand_alone)
    pools = resolve_leaks({"test": split.test, "training": usable}, leaks, spec.data.on_leak)
    pool = pools["training"]
    largest = max((size for training in _on_questions(spec) for size in training.sizes), default=0)
    if largest:
        try:
            training_items(pool, largest)
        except UserError as error:
            wanting = (
                f" {len(unusable)} questions of the pool have no gold passage, which the contexts gold and raft need." if unusable else ""
            )
            raise UserError(f"{error}{wanting}") from None
    shots = few_shot_items(pool, max(arm.shots for arm in spec.arms.values()), largest_training=largest)
    # Few-shot examples and training sets are cut from one pool whose duplicates with the test are gone; what they share is found here.
    reached = pool[: len(pool) - len(shots)] if _chosen_by_knowledge(spec) else pool[:largest]
    among = find_leaks({"few-shot": shots, "training": reached}, threshold=spec.data.near_duplicate, stand_alone=stand_alone)
    return Prepared(
        key,
        pools["test"],
        pool,
        shots,
        passages,
        gold.passages,
        (*leaks, *among),
        {
            "rows_read": sum(source.rows_read for source in sources),
            "rows_skipped": reasons([skipped.reason for source in sources for skipped in source.skipped]),
            "bad_rows": [str(row) for source in sources for row in source.bad_rows],
            "items": len(items),
            "clusters": len({item.cluster for item in items}),
            "documents": len(documents),
            "passages": len(passages),
            "passages_cut": cut_by_encoder(passages, chunking, trial.encoder_tokens),
            "encoder_max_tokens": trial.encoder_tokens.max_tokens if trial.encoder_tokens else None,
            "evidence": gold.evidence_count,
            "evidence_unmapped": len(gold.unmapped),
            "test_items": len(pools["test"]),
            "test_clusters": len({item.cluster for item in pools["test"]}),
            "pool_items": len(pool),
            "pool_unusable": len(unusable),
            "unused_items": len(split.unused),
            "stand_alone": stand_alone,
        },
        _parents(trial, parent_texts(documents, chunking.parent), places(pieces, chunking.parent)) if chunking.parent != "none" else None,
    )


def read_sources(data: DataSpec, resolve: Callable[[Path], Path]) -> Iterator[Source]:
    """Every source and corpus of a spec, read. `resolve` makes its paths absolute. Raises DataError."""
    for source in data.sources:
        yield READERS[source.reader](resolve(source.path), bad_rows=data.bad_rows, **_options(source))
    for folder in data.corpus:
        yield read_corpus(resolve(folder), bad_rows=data.bad_rows)


def cut(documents: Iterable[Document], spec: ChunkSpec, encoder: EncoderTokens | None = None) -> tuple[Passage, ...]:
    """The documents as passages. `encoder` counts tokens where the spec wants its tokens counted."""
    return tuple(piece.passage for piece in cut_documents(documents, spec, encoder))


def _options(source: SourceSpec) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, readers in _OPTIONS.items():
        value = getattr(source, name)
        if value is not None:
            if source.reader not in readers:
                raise UserError(f"data.sources: `{name}` is an option of {' and '.join(readers)}, not of {source.reader}")
            options[name] = value
    return options


def unique(items: list[Item]) -> list[Item]:
    """The items as they are. UserError when two have one id."""
    seen: dict[str, Item] = {}
    for item in items:
        if item.id in seen:
            raise UserError(f"data.sources: two files hold a question with the id {item.id!r}; the same file twice?")
        seen[item.id] = item
    return items


def merged(documents: list[Document]) -> list[Document]:
    """Documents by id. Two files may each hold a part of one (BioASQ: snippets of an article): their sections are put together."""
    found: dict[str, Document] = {}
    for document in documents:
        known = found.get(document.id)
        if known is None:
            found[document.id] = document
        else:
            new = tuple(section for section in document.sections if section not in known.sections)
            found[document.id] = replace(known, sections=(*known.sections, *new))
    return list(found.values())


def reasons(found: list[str]) -> dict[str, int]:
    """How often each was found, the most frequent first."""
    return dict(Counter(found).most_common())
