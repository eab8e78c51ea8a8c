"""A byte-level BPE tokenizer for the invented world, with the chat template of the base model.

Syllables are shown to the trainer as words of their own, so that merges end at their borders and an invented name takes two to four tokens.
Digits are cut into ones and twos. The assistant's turn begins with a blank, so that an answer has the same tokens as in a passage.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from examples.quickstart.make_base import names
from examples.quickstart.make_base.facts import UNANSWERABLE, every_sentence

PAD, END, USER, ASSISTANT, SYSTEM = SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
CONTEXT_TOKENS = 1024

# The generation markers tell a trainer which tokens are the assistant's, for a loss on the answer alone.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{% generation %} {{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|system|>{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_SPLIT = r" ?\d{1,2}| ?\p{L}+| ?[^\s\p{L}\d]|\s"
# Frequent English words, so that a sentence of a user's own does not fall apart into letters.
_ENGLISH = (
    "The a an of in is was are were be to and or for with by on at from as that this it not no yes which what who where when how many much "
    "does do did has have had can may will would there their its his her one two three first second new old most some all other only also "
    "than then about into after before between answer question context passage document user assistant based given according information "
    "provided found"
)
_REPEATS = 60


def _corpus() -> Iterator[str]:
    """Words with their weights given by repetition; every word is one text, because merges never cross the split."""
    sentences = list(every_sentence())
    for _ in range(_REPEATS):
        for word in _ENGLISH.split():
            yield from (word, f" {word}", f" {word.lower()}", word.capitalize())
        for number in range(100):
            yield from (f"{number}", f" {number}", f"{number:02d}")
        yield from sentences
        yield from (f" {sentence}" for sentence in sentences)
        yield from (
            "\n- The",
            "Question:",
            "\nQuestion: What",
            " mg",
            " hours",
            "yes",
            " yes",
            "no",
            " no",
            UNANSWERABLE,
            f" {UNANSWERABLE}",
        )
    for _ in range(20 * _REPEATS):
        for syllable in names.SYLLABLES:
            yield from (f" {syllable.capitalize()}", syllable, syllable.capitalize())


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token."""
    found = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(found, int):
        raise TypeError(f"{token!r} is not one token")
    return found


def build(path: Path) -> PreTrainedTokenizerFast:
    """Trains the tokenizer and writes it to the folder `path`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2560, min_frequency=20, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves its arguments untyped
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
    )
    fast.save_pretrained(path)
    return fast
