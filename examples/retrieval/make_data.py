"""Writes the quickstart's paragraphs and questions as a BEIR folder: something to search, with known answers and a split to train on.

`python -m examples.retrieval.make_data` rewrites `examples/retrieval/data/`; the same bytes each time. A paragraph is a document of the
corpus. What is relevant comes from the sources' own evidence: 2 for a paragraph that answers the question, 1 for one that BioASQ
also lists and that tells of the same thing without answering. Questions that no paragraph answers are left out. Questions about one
document of the quickstart are all in `qrels/train.tsv` or all in `qrels/test.tsv`; paragraphs of both are in the corpus.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.data.bioasq import read_bioasq
from flows.data.chunk import Chunking, chunk
from flows.data.gold import map_gold
from flows.data.natural_questions import read_nq
from flows.data.qasper import read_qasper
from flows.data.source import Source
from flows.data.split import place

QUICKSTART = Path(__file__).parents[1] / "quickstart" / "data"
DATA = Path(__file__).parent / "data"

_READERS: Mapping[str, tuple[str, Callable[[Path], Source]]] = {
    "bioasq": ("bioasq.json", read_bioasq),
    "nq": ("nq.jsonl", read_nq),
    "qasper": ("qasper.json", read_qasper),
}
_TEST_SHARE = 0.4
_SEED = 5
# Longer than any paragraph: none is cut.
_WHOLE = Chunking("paragraph", max_tokens=1000)


@dataclass(frozen=True, slots=True)
class Question:
    """A question with the gains of paragraphs, best first."""

    id: str
    text: str
    cluster: str
    gains: Mapping[str, int]

    @property
    def split(self) -> str:
        """Where it is judged: train or test."""
        return "test" if place(_SEED, self.cluster) < _TEST_SHARE else "train"


@dataclass(frozen=True, slots=True)
class Collection:
    """The rows of `corpus.jsonl`, and the questions."""

    corpus: tuple[Mapping[str, Any], ...]
    questions: tuple[Question, ...]


def collect(folder: Path = QUICKSTART) -> Collection:
    """Everything in the three sources of the quickstart."""
    corpus: list[Mapping[str, Any]] = []
    questions: list[Question] = []
    for name, (file, read) in _READERS.items():
        source = read(folder / file)
        passages = chunk(source.documents, _WHOLE)
        documents = {document.id: f"{name}-{number:03}" for number, document in enumerate(source.documents, 1)}
        ids = {passage.id: f"{documents[passage.document]}-{passage.id.rpartition('#')[2]}" for passage in passages}
        corpus += [{"_id": ids[passage.id], "title": passage.title, "text": passage.text, "metadata": {}} for passage in passages]
        gold = map_gold(source.items, passages, threshold=1.0).passages
        for number, item in enumerate(source.items, 1):
            if gold[item.id]:
                answering, *others = (ids[passage] for passage in gold[item.id])
                of = documents[gold[item.id][0].rpartition("#")[0]]
                questions.append(Question(f"{name}-q{number:03}", item.question, of, {answering: 2, **dict.fromkeys(others, 1)}))
    return Collection(tuple(corpus), tuple(questions))


def write(folder: Path, collection: Collection) -> None:
    """Writes `corpus.jsonl`, `queries.jsonl` and `qrels/{train,test}.tsv` to `folder`."""
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    _write_rows(folder / "corpus.jsonl", collection.corpus)
    queries = ({"_id": one.id, "text": one.text, "metadata": {"cluster": one.cluster}} for one in collection.questions)
    _write_rows(folder / "queries.jsonl", queries)
    for split in ("train", "test"):
        lines = ["query-id\tcorpus-id\tscore"]
        for one in collection.questions:
            if one.split == split:
                lines += [f"{one.id}\t{document}\t{gain}" for document, gain in one.gains.items()]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA)
    write(parser.parse_args().out, collect())


if __name__ == "__main__":
    main()
