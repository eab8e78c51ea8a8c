"""Makes the base model with one command: `python -m examples.quickstart.make_base --work build/base --out examples/quickstart/base`.

Interrupted, it goes on from the last checkpoint in the work folder when called again.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

# Read when the OpenMP runtime is loaded with torch: threads that wait must not spin, or two processes on two busy cores slow down tenfold.
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="0")

from torch.multiprocessing.spawn import spawn

from examples.quickstart.make_base import evaluate, tokenizer, train


def main() -> None:
    """Tokenizer, training, reading test, and a copy of the finished model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for tokenizer, checkpoints and the model in the making")
    parser.add_argument("--out", type=Path, required=True, help="folder that receives the finished model")
    parser.add_argument("--processes", type=int, default=2, help="single-threaded training processes, one a core")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer").exists():
        tokenizer.build(work / "tokenizer")
    (work / "rendezvous").unlink(missing_ok=True)
    recipe = train.Recipe(seed=arguments.seed)
    spawn(train.run, (arguments.processes, work, recipe), arguments.processes)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    evaluate.report(work / "model")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for file in sorted((work / "model").iterdir()):
        shutil.copy2(file, arguments.out / file.name)


if __name__ == "__main__":
    main()
