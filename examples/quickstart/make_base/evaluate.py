"""Reading test on names never seen in training: one question a prompt, greedy decoding through the chat template, exact match.

`python -m examples.quickstart.make_base.evaluate examples/quickstart/base` prints a table of the probes.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from examples.quickstart.make_base.contexts import Exercise, Shape, exercise
from examples.quickstart.make_base.facts import DOMAINS, UNANSWERABLE, Wording

PROBES: tuple[Shape, ...] = ("single", "one_entity", "one_attribute", "both", "retrieved")
"""`closed` is left out: its only right answer is to abstain."""
UNANSWERABLE_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class Score:
    """Share of right answers, from 0 to 1, among `count` questions."""

    exact_match: float
    count: int


@torch.inference_mode()
def answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], batch_size: int = 32, max_new_tokens: int = 12
) -> list[str]:
    """Greedy answers to user turns, in their order."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    found: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        chats = [[{"role": "user", "content": prompts[index]}] for index in chosen]
        turns = [str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)) for chat in chats]
        inputs = tokenizer(turns, padding=True, padding_side="left", return_tensors="pt")
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        output = model.generate(  # type: ignore[misc]  # transformers' own models do not fit the protocol that annotates `self`
            input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False
        )
        replies = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        found.update((index, reply.strip()) for index, reply in zip(chosen, replies, strict=True))
    return [found[index] for index in range(len(prompts))]


def held_out(shape: Shape, per_domain: int, wording: Wording = "wide", seed: str = "reading test") -> list[Exercise]:
    """Exercises of one question each, with reserved names only, as many from every domain."""
    exercises = []
    for domain in DOMAINS:
        rng = random.Random(f"{seed} {shape} {domain}")  # noqa: S311
        exercises += [exercise(rng, shape, 1, UNANSWERABLE_SHARE, held_out=True, domain=domain, wording=wording) for _ in range(per_domain)]
    return exercises


def scores(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, exercises: list[Exercise]) -> dict[str, Score]:
    """Exact match over all, by domain and by kind of question."""
    right: dict[str, list[bool]] = defaultdict(list)
    for one, answer in zip(exercises, answers(model, tokenizer, [one.prompt() for one in exercises]), strict=True):
        question = one.questions[0]
        ok = answer == question.answer
        for group in ("all", question.domain, question.kind):
            right[group].append(ok)
        if question.answer != UNANSWERABLE:
            right["answerable, yet abstained"].append(answer == UNANSWERABLE)
    return {group: Score(sum(values) / len(values), len(values)) for group, values in right.items()}


def report(path: Path, per_domain: int = 100) -> None:
    """Prints the probes as a table, in per cent."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    for wording in ("common", "wide"):
        for shape in PROBES:
            found = scores(model, tokenizer, held_out(shape, per_domain, wording))
            cells = "  ".join(f"{group} {100 * score.exact_match:.1f} (n={score.count})" for group, score in found.items())
            print(f"{wording:6s} {shape:14s} {cells}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--per-domain", type=int, default=100)
    arguments = parser.parse_args()
    report(arguments.model, arguments.per_domain)
