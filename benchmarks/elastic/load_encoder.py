"""Contestant of ingest: `SentenceTransformer.encode` alone on the texts, one thread, nothing stored. Prints its seconds.

`way` is the number of the first passage and the batch size: `0/32`; `encoder` is the folder of the model.
"""

from __future__ import annotations

import json
import time

import torch
from sentence_transformers import SentenceTransformer

from benchmarks.elastic.contest import Task
from benchmarks.elastic.corpus import Corpus, batches


def main(task: Task) -> None:
    """Encodes them."""
    torch.set_num_threads(1)
    first, _, size = task.way.partition("/")
    corpus = Corpus(task.seed)
    texts = [text for batch in batches(int(first), task.passages) for text in corpus.passages(batch).texts]
    model = SentenceTransformer(task.encoder, device="cpu")
    model.encode(texts[:32], batch_size=32)
    began = time.perf_counter()
    model.encode(texts, batch_size=int(size), normalize_embeddings=True, show_progress_bar=False)
    print(json.dumps({"seconds": time.perf_counter() - began}))


main(Task.load())
