"""All measurements, one after the other, each in a process of its own. `python -m benchmarks`; figures that were kept are in RESULTS.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

for script in sorted(Path(__file__).parent.glob("*.py")):
    if not script.name.startswith("_"):
        print(f"== {script.stem}", flush=True)
        subprocess.run([sys.executable, str(script), *sys.argv[1:]], check=True)
for package in ("trainer", "elastic", "vllm", "vllm.answers"):
    print(f"== {package}", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{package}", *sys.argv[1:]], check=True, cwd=Path(__file__).parents[1])
