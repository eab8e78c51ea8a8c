"""How fast the trainer trains, against the plain script of TRL's documentation: tokens a second, and the start of a job.

    python -m benchmarks.trainer [--json] [--rows 192] [--epochs 1] [--rounds 3]

The quickstart's base, LoRA of rank 16, questions with none to five passages and short answers (the quickstart's, drawn by a seed), batches
of 16, float32, one thread, each run a process of its own, in turns. Tokens are those of the data, padding not counted; the loss is on the
answers everywhere, and evaluated on questions of which nothing was trained. "TRL by length" is the plain script told to group by length;
"two processes" is a job of ours that torchrun starts twice, with the same batch, on two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.trainer.plain import Clock
from services.trainer.domain import Event, Order, Progressed
from services.trainer.inputs import FileInputs
from services.trainer.local_launcher import LocalLauncher
from services.trainer.records import work_hash
from services.trainer.spec import Lora, Optimization, SupervisedFineTuning, TrainingSpec

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "examples" / "quickstart"
BATCH, RATE = 16, 2e-3
OURS, TWO, PLAIN, GROUPED = "tunetrial", "two processes", "TRL", "TRL by length"
_WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    GROUPED: {"train_sampling_strategy": "group_by_length"},
}


@dataclass(frozen=True, slots=True)
class Run:
    """One training."""

    start_s: float
    """From the order to the end of the first step."""
    tokens_per_s: float
    evaluation_loss: float


def write_data(folder: Path, count: int) -> None:
    """Rows to train on, and a quarter as many to evaluate on."""
    questions = json.loads((QUICKSTART / "data" / "bioasq.json").read_text())["questions"]
    texts = [snippet["text"] for question in questions for snippet in question["snippets"]]
    draw = random.Random(7)  # noqa: S311  no secret
    rows = []
    for number in range(count + count // 4):
        question = questions[number % len(questions)]
        shown = [*draw.sample(texts, draw.randint(0, 4)), question["snippets"][0]["text"]][draw.randint(0, 1) :]
        prompt = "".join(f"- {text}\n" for text in shown) + f"Question: {question['body']} ({number})"
        answer = {"role": "assistant", "content": str(question["ideal_answer"])}
        rows.append(json.dumps({"messages": [{"role": "user", "content": prompt}, answer]}) + "\n")
    draw.shuffle(rows)
    (folder / "train.jsonl").write_text("".join(rows[:count]))
    (folder / "evaluation.jsonl").write_text("".join(rows[count:]))


async def ours(folder: Path, name: str, given: argparse.Namespace, launcher: LocalLauncher) -> Run:
    """A job of the trainer's launcher."""
    course = Optimization.given(epochs=given.epochs, batch_size=BATCH, learning_rate=RATE)
    method = SupervisedFineTuning(Lora.given(), course)
    data = (str(folder / "train.jsonl"), str(folder / "evaluation.jsonl"))
    spec = TrainingSpec(name, str(QUICKSTART / "base"), *data, 1, method)
    inputs = await FileInputs(f"{folder}:{QUICKSTART}", {}).read(spec)
    places = str(folder / "adapters"), str(folder / "checkpoints" / name)
    order = Order(name, spec, inputs, work_hash(spec, inputs), *places, 3600.0, 1, launcher.processes)
    begun, seen, clock = time.time(), list[Event](), Clock()
    run = await launcher.launch(order)
    async for event in run.events():
        seen.append(event)
        if isinstance(event, Progressed) and event.progress.step > len(clock.ends):
            clock.ends.append(time.time())
            # Rate times seconds gives back what the rate was made of.
            elapsed = event.progress.step * (event.progress.remaining_s or 0) / max(1, event.progress.step_count - event.progress.step)
            clock.tokens.append(round((event.progress.tokens_per_second or 0) * elapsed))
    steps = [event.progress for event in seen if isinstance(event, Progressed)]
    if not steps or steps[-1].evaluation_loss is None:
        raise SystemExit(f"training failed: {seen[-2:]}")
    # The last step has no time left to reckon with.
    seconds = clock.ends[-2] - clock.ends[1]
    return Run(clock.ends[0] - begun, (clock.tokens[-2] - clock.tokens[1]) / seconds, steps[-1].evaluation_loss)


def theirs(folder: Path, way: str, given: argparse.Namespace) -> Run:
    """A run of the plain script."""
    task = {
        "base": str(QUICKSTART / "base"),
        "folder": str(folder / "plain"),
        "seed": 1,
        "epochs": given.epochs,
        "batch": BATCH,
        "rate": RATE,
        "train": str(folder / "train.jsonl"),
        "evaluation": str(folder / "evaluation.jsonl"),
        "more": _WAYS[way],
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_HOME": str(folder / "hub"), "PYTHONWARNINGS": "ignore"}
    begun = time.time()
    command = [sys.executable, "-m", "benchmarks.trainer.plain", json.dumps(task)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    figures = json.loads(done.stdout.splitlines()[-1])
    return Run(figures["first_step"] - begun, figures["tokens_per_s"], figures["evaluation_loss"])


async def measure(given: argparse.Namespace, folder: Path) -> dict[str, list[Run]]:
    """All runs, by contestant."""
    write_data(folder, given.rows)
    launchers = {
        name: LocalLauncher(folder / "jobs", threads=1, processes=processes, warm=False, cancel_grace_s=2)
        for name, processes in ((OURS, 1), (TWO, 2))
    }
    seen: dict[str, list[Run]] = {name: [] for name in (*launchers, *_WAYS)}
    for number in range(given.rounds):
        for name, launcher in launchers.items():
            seen[name].append(await ours(folder, f"{launcher.processes}-{number}", given, launcher))
        for way in _WAYS:
            seen[way].append(await asyncio.to_thread(theirs, folder, way, given))
    for launcher in launchers.values():
        await launcher.close()
    return seen


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        seen = asyncio.run(measure(given, Path(temporary)))
    if given.json:
        print(json.dumps({name: [asdict(run) for run in runs] for name, runs in seen.items()}))
        return
    print(f"{'':15}{'tokens/s':>10}{'ours to it':>22}{'start s':>9}{'evaluation loss':>17}")
    for name, runs in seen.items():
        ratios = [mine.tokens_per_s / run.tokens_per_s for mine, run in zip(seen[OURS], runs, strict=True)]
        speed, start, loss = (
            statistics.median(getattr(run, key) for run in runs) for key in ("tokens_per_s", "start_s", "evaluation_loss")
        )
        ratio = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"{name:15}{speed:10.0f}{ratio:>22}{start:9.1f}{loss:17.4f}")


if __name__ == "__main__":
    main()
