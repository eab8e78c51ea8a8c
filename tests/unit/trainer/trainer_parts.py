"""A tiny random base with its own tokenizer and chat template, and data in the trainer's form. Made without torch, at no cost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN, LAYERS, HEADS, INTERMEDIATE, CONTEXT = 32, 2, 2, 64, 128
SPECIAL = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ m['role'] }}|>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
# Shows only the last question: what came before looks different once the conversation has gone on.
FORGETFUL = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{% if loop.last %}{{ m['content'] }}{% endif %}<|end|>"
    "{% else %}<|{{ m['role'] }}|>{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_TEXT = [
    "where did anna leave the lamp",
    "in the harbour by the mill",
    "what is the capital of the valley",
    "it is the tower of the market",
]


def make_base(folder: Path, chat_template: str | None = MARKED) -> Path:
    """A Llama of random weights, always the same, in transformers' form."""
    folder.mkdir(parents=True)
    vocabulary = _make_tokenizer(folder, chat_template)
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return rng.normal(0, 0.2, shape).astype(np.float32)

    weights = {"model.embed_tokens.weight": random(vocabulary, HIDDEN), "model.norm.weight": np.ones(HIDDEN, np.float32)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        weights |= {f"{at}.self_attn.{name}_proj.weight": random(HIDDEN, HIDDEN) for name in "qkvo"}
        weights |= {f"{at}.mlp.{name}_proj.weight": random(INTERMEDIATE, HIDDEN) for name in ("gate", "up")}
        weights[f"{at}.mlp.down_proj.weight"] = random(HIDDEN, INTERMEDIATE)
        weights |= {f"{at}.{name}_layernorm.weight": np.ones(HIDDEN, np.float32) for name in ("input", "post_attention")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "vocab_size": vocabulary,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _make_tokenizer(folder: Path, chat_template: str | None) -> int:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(_TEXT, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|pad|>", "eos_token": "<|end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return tokenizer.get_vocab_size()


def turns(*contents: str) -> dict[str, list[dict[str, str]]]:
    """A row: user and assistant in turn."""
    return {"messages": [{"role": ("user", "assistant")[index % 2], "content": content} for index, content in enumerate(contents)]}


def write_rows(path: Path, rows: Iterable[object]) -> Path:
    """A JSONL file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(count: int) -> list[dict[str, list[dict[str, str]]]]:
    """Rows of uneven length, each different."""
    return [turns(f"where did anna leave the lamp {'again ' * (n % 5)}{n}", f"in the harbour {n % 7}") for n in range(count)]
