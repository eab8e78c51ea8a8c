"""How these tests call the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart"
_COMMAND = [sys.executable, "-c", "import sys; from flows.cli import main; sys.argv[0] = 'tunetrial'; main()"]


def start(*arguments: str, cwd: Path, **settings: str) -> subprocess.Popen[str]:
    """The command, running; its standard error can be read line by line. `settings` go into its environment as TUNETRIAL_*."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TUNETRIAL_")}
    environment |= {f"TUNETRIAL_{name.upper()}": value for name, value in settings.items()}
    return subprocess.Popen(
        [*_COMMAND, *arguments], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(*arguments: str, cwd: Path, **settings: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    process = start(*arguments, cwd=cwd, **settings)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def run_trial(spec: dict[str, Any], cwd: Path, *options: str, **settings: str) -> dict[str, Any]:
    """The outcome of a trial that ends well."""
    (cwd / "trial.yaml").write_text(yaml.safe_dump(spec))
    code, out, err = finish("run", "trial.yaml", "--json", *options, cwd=cwd, **settings)
    assert code == 0, out + err
    outcome: dict[str, Any] = json.loads(out)
    return outcome


def wait_for(condition: Callable[[], bool], seconds: float = 600.0) -> None:
    """Returns when the condition holds; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
