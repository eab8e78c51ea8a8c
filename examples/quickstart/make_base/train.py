"""Trains the base model: a small Llama, several questions a context, easy keys first.

Data parallel over single-threaded processes, one a core, with averaged gradients. A step's data depend on seed, rank and step alone, so
training goes on from its checkpoint as if it had never stopped. Knows nothing of the quickstart's own documents, whose names are reserved.
"""

from __future__ import annotations

import logging
import random
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  # the name that torch's own documentation uses
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.quickstart.make_base.contexts import Exercise, Shape, exercise, prompt
from examples.quickstart.make_base.tokenizer import ASSISTANT, CONTEXT_TOKENS, END, PAD, USER, token_id

logger = logging.getLogger(__name__)

PROMPT_WEIGHT = 0.05
"""Loss weight of a prompt token; a token of an answer weighs 1."""
POOL = 6
"""Batches made together and cut by length, so that little is padding."""
LOG_EVERY, SAVE_EVERY = 20, 100


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the curriculum: shares of the shapes, how many questions a context may have, and for how many steps."""

    steps: int
    shares: dict[Shape, float]
    questions: tuple[int, ...] = (8,)
    unanswerable: float = 0.15


CURRICULUM = (
    Phase(600, {"single": 0.95, "closed": 0.05}, unanswerable=0.05),
    Phase(504, {"single": 0.15, "both": 0.35, "one_entity": 0.15, "one_attribute": 0.30, "closed": 0.05}),
    Phase(150, {"both": 0.25, "one_entity": 0.05, "one_attribute": 0.20, "retrieved": 0.45, "closed": 0.05}, unanswerable=0.2),
    Phase(246, {"both": 0.25, "one_attribute": 0.20, "retrieved": 0.45, "closed": 0.10}, (1, 1, 2, 3, 8), unanswerable=0.2),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Size of the model and settings of training. Batches are counted in tokens, padding included."""

    hidden: int = 192
    layers: int = 6
    heads: int = 6
    feed_forward: int = 512
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    batch_tokens: int = 4096
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids, the loss weight of each as a target, and which shape each row has."""

    ids: torch.Tensor
    weights: torch.Tensor
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class _Row:
    ids: list[int]
    weights: list[float]
    shape: Shape


def total_steps() -> int:
    """Steps of the whole curriculum."""
    return sum(phase.steps for phase in CURRICULUM)


def _phase(step: int) -> Phase:
    for phase in CURRICULUM:
        if step < phase.steps:
            return phase
        step -= phase.steps
    return CURRICULUM[-1]


def _rows(tokenizer: PreTrainedTokenizerFast, exercises: list[Exercise]) -> list[_Row]:
    """Exercises as chats: the first turn shows the passages, every turn asks one question."""
    turns = [
        text
        for one in exercises
        for index, question in enumerate(one.questions)
        for text in (prompt(one.passages if index == 0 else (), question.text), f" {question.answer}")
    ]
    encoded = iter(tokenizer(turns, add_special_tokens=False)["input_ids"])
    user, assistant, end = (token_id(tokenizer, token) for token in (USER, ASSISTANT, END))
    rows = []
    for one in exercises:
        row = _Row([], [], one.shape)
        for _ in one.questions:
            asked, answered = next(encoded), next(encoded)
            row.ids.extend([user, *asked, assistant, *answered, end])
            row.weights.extend([0.0] + [PROMPT_WEIGHT] * len(asked) + [0.0] + [1.0] * (len(answered) + 1))
        rows.append(row)
    return rows


def batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, rank: int, pool: int) -> list[Batch]:
    """The POOL batches that begin at step `pool * POOL`, each of about `batch_tokens` tokens, rows of like length together."""
    rng = random.Random(f"train {recipe.seed} {rank} {pool}")  # noqa: S311
    phase = _phase(pool * POOL)
    rows: list[_Row] = []
    tokens = 0
    while tokens < POOL * recipe.batch_tokens:
        shapes = rng.choices(list(phase.shares), list(phase.shares.values()), k=32)
        new = _rows(tokenizer, [exercise(rng, shape, rng.choice(phase.questions), phase.unanswerable) for shape in shapes])
        tokens += sum(len(row.ids) for row in new)
        rows += new
    rows.sort(key=lambda row: len(row.ids))
    cuts, seen = [0], 0
    for index, row in enumerate(rows):
        seen += len(row.ids)
        if seen >= len(cuts) * tokens / POOL and len(cuts) < POOL:
            cuts.append(index + 1)
    made = [_collate(tokenizer, rows[start:stop]) for start, stop in pairwise([*cuts, len(rows)])]
    rng.shuffle(made)
    return made


def _collate(tokenizer: PreTrainedTokenizerFast, rows: list[_Row]) -> Batch:
    length = -(-max(len(row.ids) for row in rows) // 16) * 16
    pad = token_id(tokenizer, PAD)
    ids = torch.tensor([row.ids + [pad] * (length - len(row.ids)) for row in rows])
    weights = torch.tensor([row.weights + [0.0] * (length - len(row.weights)) for row in rows])
    return Batch(ids, weights, tuple(row.shape for row in rows))


def new_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    """An untrained Llama that fits the tokenizer."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=-(-len(tokenizer) // 8) * 8,
            hidden_size=recipe.hidden,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            intermediate_size=recipe.feed_forward,
            max_position_embeddings=CONTEXT_TOKENS,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _loss(model: LlamaForCausalLM, batch: Batch, assistant: int) -> tuple[torch.Tensor, dict[str, list[bool]]]:
    """Weighted cross-entropy, and by shape whether the first token of each answer was foreseen."""
    hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state[:, :-1]
    targets, weights = batch.ids[:, 1:], batch.weights[:, 1:]
    used = weights > 0
    logits = F.linear(hidden[used], model.lm_head.weight).float()
    losses = F.cross_entropy(logits, targets[used], reduction="none")
    loss = (losses * weights[used]).sum() / weights[used].sum()
    first = (batch.ids[:, :-1] == assistant)[used]
    right = (logits.detach().argmax(-1) == targets[used])[first].tolist()
    owners = used.nonzero()[:, 0][first].tolist()
    foreseen: dict[str, list[bool]] = {}
    for row, ok in zip(owners, right, strict=True):
        foreseen.setdefault(batch.shapes[row], []).append(ok)
    return loss, foreseen


def _learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, constant through the first phase, then linear to 2 % at the end."""
    first, total = CURRICULUM[0].steps, total_steps()
    decay = 1.0 if step < first else max(0.02, (total - step) / (total - first))
    return recipe.learning_rate * min(1.0, (step + 1) / recipe.warmup_steps) * decay


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name and "lm_head" not in name]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Writes half-precision safetensors and the tokenizer to the folder `path`."""
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.half()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    half.save_pretrained(path)
    tokenizer.save_pretrained(path)


def _average_gradients(parameters: list[torch.nn.Parameter], world: int) -> None:
    flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    flat /= world
    at = 0
    for p in parameters:
        if p.grad is not None:
            p.grad.copy_(flat[at : at + p.numel()].view_as(p))
            at += p.numel()


def run(rank: int, world: int, work: Path, recipe: Recipe) -> None:
    """One of `world` processes. Leaves the model in `work/model`; goes on from `work/checkpoint.pt` when there is one."""
    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    model = new_model(tokenizer, recipe)
    optimizers = _optimizers(model, recipe)
    step, tokens = 0, 0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, tokens = state["step"], state["tokens"]
    if world > 1:
        dist.init_process_group("gloo", init_method=(work / "rendezvous").absolute().as_uri(), rank=rank, world_size=world)
    parameters = list(model.parameters())
    assistant = token_id(tokenizer, ASSISTANT)
    model.model.forward = torch.compile(model.model.forward, dynamic=True)
    logger.info("%.2f M parameters, %d steps, %s", sum(p.numel() for p in parameters) / 1e6, total_steps(), asdict(recipe))
    began, began_tokens = time.monotonic(), tokens
    seen: dict[str, list[bool]] = {}
    pool: list[Batch] = []
    while step < total_steps():
        if not pool or step % POOL == 0:
            pool = batches(tokenizer, recipe, rank, step // POOL)
        batch = pool[step % POOL]
        with torch.autocast("cpu", torch.bfloat16):
            loss, foreseen = _loss(model, batch, assistant)
        torch.autograd.backward(loss)
        if world > 1:
            _average_gradients(parameters, world)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(recipe, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        tokens += batch.ids.numel() * world
        for shape, right in foreseen.items():
            seen[shape] = seen.get(shape, []) + right
        if rank == 0 and step % LOG_EVERY == 0:
            rates = " ".join(f"{shape} {sum(right) / len(right):.3f}" for shape, right in sorted(seen.items()))
            pace = (tokens - began_tokens) / (time.monotonic() - began)
            logger.info("step %d loss %.3f tokens %.2f M (%.0f/s) first token: %s", step, loss.item(), tokens / 1e6, pace, rates)
            seen = {}
        if rank == 0 and (step % SAVE_EVERY == 0 or step == total_steps()):
            save(model, tokenizer, work / "model")
            state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers], "step": step, "tokens": tokens}
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
    if world > 1:
        dist.destroy_process_group()
