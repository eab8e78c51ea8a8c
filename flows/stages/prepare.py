"""Stage 1: reads the data, cuts passages, splits by cluster, checks for leaks. Asks no service."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import anyio.to_thread

from flows.data.chunk import Chunking, chunk
from flows.data.folder import read_corpus
from flows.data.gold import map_gold
from flows.data.leakage import Leak, find_leaks, resolve_leaks
from flows.data.readers import READERS
from flows.data.source import Source
from flows.data.split import few_shot_items, split_items, training_items
from flows.data.training_set import ContextKind, trainable
from flows.errors import UserError
from flows.records import Document, Item, Passage
from flows.spec import SourceSpec
from flows.store import digest
from flows.trial import Trial

# Raise it when the code of this stage or of the readers changes what comes out.
VERSION = 1

_OPTIONS = {"answers": ("bioasq",), "long_answers": ("nq",), "limit": ("nq", "nq_open"), "columns": ("table",)}
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

    @cached_property
    def by_id(self) -> dict[str, Passage]:
        """Passages by id."""
        return {passage.id: passage for passage in self.passages}


@dataclass(frozen=True, slots=True)
class _Gold:
    item: str
    passages: tuple[str, ...]


async def prepare(trial: Trial) -> Prepared:
    """Items, passages and leakage findings; read from the store where they were prepared before."""
    inputs = {"version": VERSION, **{name: trial.inputs[name] for name in ("files", "corpus")}, "spec": _relevant(trial)}
    key = digest(inputs)
    if not trial.store.has("prepared", key):
        trial.progress.stage("prepare")
        prepared = await anyio.to_thread.run_sync(make, trial, key)
        write = trial.store.write_records
        for name, items in (("test", prepared.test), ("pool", prepared.pool), ("shots", prepared.shots)):
            write("prepared", key, f"{name}.parquet", Item, items)
        write("prepared", key, "passages.parquet", Passage, prepared.passages)
        write("prepared", key, "gold.parquet", _Gold, [_Gold(item, found) for item, found in prepared.gold.items()])
        write("prepared", key, "leaks.parquet", Leak, prepared.leaks)
        trial.store.write_json("prepared", key, "counts.json", dict(prepared.counts))
        trial.store.finish("prepared", key, inputs)
        trial.progress.finish("prepare", f"{len(prepared.test)} test questions, {len(prepared.passages)} passages")
    return _read(trial, key)


def _relevant(trial: Trial) -> dict[str, Any]:
    spec = trial.spec
    return {
        "data": spec.data.model_dump(mode="json"),
        "chunk": spec.retrieval.chunk.model_dump(mode="json"),
        "sizes": sorted({size for training in spec.training.values() for size in training.sizes}),
        "contexts": sorted({training.context_name for training in spec.training.values()}),
        "shots": max((arm.shots for arm in spec.arms.values()), default=0),
    }


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
    )


def make(trial: Trial, key: str) -> Prepared:
    """Does the work of this stage. Raises UserError, DataError and LeakageError with what to change."""
    spec = trial.spec
    sources = list(read_sources(trial))
    items = _unique([item for source in sources for item in source.items])
    documents = _merged([document for source in sources for document in source.documents])
    if not documents and any(arm.rag for arm in spec.arms.values()):
        raise UserError("data: these sources bring no documents to retrieve from; name a folder of texts under data.corpus")
    chunking = spec.retrieval.chunk
    passages = chunk(documents, Chunking(chunking.unit, chunking.max_tokens, chunking.overlap))
    gold = map_gold(items, passages)
    split = split_items(items, test_items=spec.data.test_items, seed=spec.data.seed)
    kinds: set[ContextKind] = {training.context_name for training in spec.training.values()}  # type: ignore[misc]  # names checked by the spec
    usable, unusable = trainable(split.pool, gold.passages, kinds)
    stand_alone = all(source.stand_alone for source in sources)
    leaks = find_leaks({"test": split.test, "training": usable}, threshold=spec.data.near_duplicate, stand_alone=stand_alone)
    pools = resolve_leaks({"test": split.test, "training": usable}, leaks, spec.data.on_leak)
    pool = pools["training"]
    largest = max((size for training in spec.training.values() for size in training.sizes), default=0)
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
    among = find_leaks({"few-shot": shots, "training": pool[:largest]}, threshold=spec.data.near_duplicate, stand_alone=stand_alone)
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
            "rows_skipped": _reasons([skipped.reason for source in sources for skipped in source.skipped]),
            "bad_rows": [str(row) for source in sources for row in source.bad_rows],
            "items": len(items),
            "clusters": len({item.cluster for item in items}),
            "documents": len(documents),
            "passages": len(passages),
            "evidence": gold.evidence_count,
            "evidence_unmapped": len(gold.unmapped),
            "test_items": len(pools["test"]),
            "test_clusters": len({item.cluster for item in pools["test"]}),
            "pool_items": len(pool),
            "pool_unusable": len(unusable),
            "unused_items": len(split.unused),
        },
    )


def read_sources(trial: Trial) -> Iterator[Source]:
    """Every source and corpus of a spec, read. Raises DataError."""
    data = trial.spec.data
    for source in data.sources:
        yield READERS[source.reader](trial.loaded.resolve(source.path), bad_rows=data.bad_rows, **_options(source))
    for folder in data.corpus:
        yield read_corpus(trial.loaded.resolve(folder), bad_rows=data.bad_rows)


def _options(source: SourceSpec) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, readers in _OPTIONS.items():
        value = getattr(source, name)
        if value is not None:
            if source.reader not in readers:
                raise UserError(f"data.sources: `{name}` is an option of {' and '.join(readers)}, not of {source.reader}")
            options[name] = value
    return options


def _unique(items: list[Item]) -> list[Item]:
    seen: dict[str, Item] = {}
    for item in items:
        if item.id in seen:
            raise UserError(f"data.sources: two files hold a question with the id {item.id!r}; the same file twice?")
        seen[item.id] = item
    return items


def _merged(documents: list[Document]) -> list[Document]:
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


def _reasons(reasons: list[str]) -> dict[str, int]:
    return dict(Counter(reasons).most_common())
