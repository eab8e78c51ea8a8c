"""Adapters, and models of their own, on disk: weights, configuration, manifest.json and a model card in a folder; published whole or not.

Knows no training.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from services.trainer.domain import Adapter
from services.trainer.records import ADAPTER

WEIGHTS = "adapter_model.safetensors"
"""Of an adapter."""
HOSTED = "openai:"
"""Uris of adapters whose weights a provider keeps begin so; the name of its model follows."""
MANIFEST = "manifest.json"
_PARTIAL = ".partial-"
"""Names of adapters do not begin with '.', so the two never meet."""


def partial_folder(adapters_dir: Path, job_id: str) -> Path:
    """A new folder for an adapter in the making, on the same file system as its final place. Raises OSError."""
    folder = adapters_dir / f"{_PARTIAL}{job_id}-{os.getpid()}"
    folder.mkdir(parents=True)
    return folder


def write(folder: Path, adapter: Adapter, more: Mapping[str, Any]) -> None:
    """Writes manifest and model card. `more` is what the manifest holds beside the adapter's own fields. Raises OSError."""
    # The folder is left out as uri: a manifest must stay true when its folder is copied elsewhere.
    apart = None if adapter.uri.startswith(HOSTED) else {"uri"}
    manifest = {**ADAPTER.dump_python(adapter, mode="json", exclude=apart), **more}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(adapter, more["recipe"]), encoding="utf-8")


def publish(partial: Path, final: Path, job_id: str) -> None:
    """Gives a finished folder its name, at once and for good. Raises OSError, FileExistsError when another job has the name."""
    for file in partial.iterdir():
        # The weights come out readable for their owner only; engines may run as somebody else.
        file.chmod(0o644)
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    try:
        partial.rename(final)
    except OSError:
        # The same job may have published before it was interrupted and run again; the result is the same.
        if read(final, job_id) is None:
            if final.exists():
                raise FileExistsError(f"the adapter folder {final.name} exists already and is of another job") from None
            raise
        shutil.rmtree(partial)
    _sync_folder(final.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(folder: Path, job_id: str) -> Adapter | None:
    """The adapter in a folder if that job made it; None otherwise."""
    return _read(folder, "job_id", job_id)


def _read(folder: Path, key: str, value: str) -> Adapter | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if manifest.get(key) != value:
        return None
    return ADAPTER.validate_python({"uri": str(folder), **manifest})


class AdapterFiles:
    """The published adapters of one folder."""

    store = None

    def __init__(self, adapters_dir: Path) -> None:
        self._dir = adapters_dir

    @property
    def path(self) -> str:
        """Where training processes publish."""
        return str(self._dir)

    def exists(self, name: str) -> bool:
        """Whether something is published under `name`."""
        return (self._dir / name).exists()

    def published(self, name: str, job_id: str) -> Adapter | None:
        """The adapter `name` if that job made it."""
        return read(self._dir / name, job_id)

    def of_work(self, name: str, work: str) -> Adapter | None:
        """The adapter `name` if that work makes it, whoever did it."""
        return _read(self._dir / name, "work", work)

    def discard_partial(self, job_id: str | None = None) -> None:
        """Removes what unfinished jobs left behind: of one job, or of all."""
        for folder in self._dir.glob(f"{_PARTIAL}{job_id or ''}*"):
            shutil.rmtree(folder, ignore_errors=True)


def _card(adapter: Adapter, recipe: Mapping[str, Any]) -> str:
    method, data = recipe["method"], adapter.dataset
    if method["kind"] == "hosted":
        return _hosted_card(adapter, recipe)
    course = method["optimization"]
    length = f"{course['epochs']:g} epochs" if course["epochs"] is not None else f"{course['max_steps']} steps"
    return f"""---
library_name: {"transformers" if method["kind"] == "full" else "peft"}
---

# {adapter.name}

{_KINDS[method["kind"]](method)} for the base `{adapter.base}`: {data.example_count - data.masked_count} examples, {length},
{course["batch_size"]} examples a step, learning rate {course["learning_rate"]:g} ({course["schedule"]}), seed {recipe["seed"]}. Loss at
the end {adapter.final_loss:.4f}.

Of {data.example_count} examples, {data.truncated_count} were cut to the longest length allowed and {data.masked_count} left out because
the cut left nothing to learn from.

`manifest.json` holds every setting, the hashes of base, data and weights, the library versions, and the log-probabilities on a few prompts
by which an engine can prove that it {_PROOF[method["kind"] == "full"].format(base=adapter.base_sha256)}
"""


def _hosted_card(adapter: Adapter, recipe: Mapping[str, Any]) -> str:
    return f"""# {adapter.name}

The model `{adapter.uri.removeprefix(HOSTED)}` of a provider, which it fine-tuned from its model `{adapter.base}`
on {adapter.dataset.example_count} examples, with seed {recipe["seed"]}. The weights are the provider's: there are none
here, and only the provider can answer with them.

`manifest.json` holds every setting, the hash of the data, and what the provider told of the training.
"""


_PROOF = (
    "applies this adapter. It fits the base with sha256 `{base}` only.",
    "runs these weights. They were made of the base with sha256 `{base}`.\n\n"
    "This folder is a model of its own: name it where transformers, vLLM or another engine takes a model.",
)


def _lora(method: Mapping[str, Any]) -> str:
    return f"A LoRA adapter (rank {method['lora']['rank']}, alpha {method['lora']['alpha']:g})"


_KINDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "sft": lambda method: f"{_lora(method)}, trained by supervised fine-tuning on the assistant's tokens,",
    "full": lambda _: "All weights, trained by supervised fine-tuning on the assistant's tokens,",
    "dpo": lambda method: f"{_lora(method)}, trained by direct preference optimisation (beta {method['beta']:g}),",
    "prompt_tuning": lambda method: f"A soft prompt of {method['virtual_tokens']} virtual tokens, trained on the assistant's tokens,",
}
