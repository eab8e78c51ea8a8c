"""MLflow and Weights & Biases by the callbacks of transformers, which are told the job's settings and figures, and nothing else.

As they are, the callbacks send all arguments of the trainer, paths among them, and the base's configuration, and their libraries add host,
user, script, git state, command line and installed packages. So each begins its run here, in its own way. Knows no method of training.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import MLflowCallback, WandbCallback

from services.common.errors import FailedPrecondition
from services.trainer.domain import Order
from services.trainer.records import spec_json

_PROJECT = "tunetrial"
_KEY = "report.json"
_TAG = "tunetrial.run"
_ELSEWHERE = ("adapter_name", "base", "dataset_uri", "evaluation_uri")
"""Settings that are told otherwise: the run's name, and what may be a path."""


def settings_of(order: Order) -> dict[str, Any]:
    """What is told of a job: its settings, flat, and its inputs by hash."""
    spec, inputs = spec_json(order.spec), order.inputs
    # A hub name means the same everywhere, a folder does not.
    told: dict[str, Any] = {"adapter_name": order.spec.adapter_name, "base": inputs.base_hub_name or Path(order.spec.base).name}
    told |= {"base_sha256": inputs.base_sha256, "base_revision": inputs.base_revision}
    told |= {"dataset_sha256": inputs.dataset_sha256, "evaluation_sha256": inputs.evaluation_sha256}
    told |= _flat({name: value for name, value in spec.items() if name not in _ELSEWHERE})
    return {name: value for name, value in told.items() if value is not None}


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[before + name] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return found


def run_key(order: Order) -> str:
    """By which a training that goes on finds its run again; it lies with the checkpoints that it goes on from, and goes with them."""
    file = Path(order.checkpoints_dir) / _KEY
    try:
        return str(json.loads(file.read_bytes())["run"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    key = uuid.uuid4().hex
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f".{_KEY}")
    half.write_text(json.dumps({"run": key}), encoding="utf-8")
    half.replace(file)
    return key


def _words(error: Exception) -> str:
    # An address may hold a name and a password.
    return re.sub(r"//[^/@\s]+@", "//***@", f"{type(error).__name__}: {error}")


class _Told:
    """What both have in common: a training goes on without its reports, but does not begin without them."""

    def __init__(self, order: Order) -> None:
        super().__init__()
        self._order, self._seen, self._complained = order, -1, False

    def setup(self, args: Any, state: Any, model: Any = None, **kwargs: Any) -> None:
        """Begins the run, or goes on with it. Raises FailedPrecondition REPORT_REFUSED."""
        if state.is_world_process_zero:
            try:
                self._seen = self.begin(run_key(self._order), settings_of(self._order))
            except Exception as error:
                message = "{library} (TUNETRIAL_REPORT_TO) does not take the run: {why}; look at the variables by which it is reached"
                raise FailedPrecondition("REPORT_REFUSED", message, library=self.library, why=_words(error)) from error
        self._initialized = True

    library = ""

    def begin(self, key: str, settings: dict[str, Any]) -> int:
        """Begins or goes on with the run; the last step that it knows already, -1 for none."""
        raise NotImplementedError

    def end(self, failed: bool) -> None:
        """Ends the run."""
        raise NotImplementedError

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tells figures of a step, unless an attempt that was interrupted told them."""
        if state.global_step >= self._seen:
            self._try(lambda: super(_Told, self).on_log(args, state, control, **kwargs))  # type: ignore[misc]  # the library's callbacks have it

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the run; one that is interrupted goes on with it."""
        self.close(failed=False)

    def close(self, failed: bool) -> None:
        """Ends the run, if it began; once."""
        if getattr(self, "_initialized", False):
            self._initialized = False
            self._try(lambda: self.end(failed))

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing: checkpoints and weights are told to nobody."""

    def _try(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except Exception as error:
            if not self._complained:
                print(f"{self.library} does not take the figures: {_words(error)}", flush=True)
            self._complained = True


class Mlflow(_Told, MLflowCallback):  # type: ignore[misc]  # the library leaves it untyped
    """Where MLFLOW_TRACKING_URI says, in the experiment MLFLOW_EXPERIMENT_NAME or `tunetrial`."""

    library = "MLflow"

    def begin(self, key: str, settings: dict[str, Any]) -> int:
        """By the client: the fluent call would tell user, script and git state."""
        mlflow = self._ml_flow
        client = mlflow.MlflowClient()
        experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT).experiment_id
        runs = client.search_runs([experiment], f"tags.`{_TAG}` = '{key}'", max_results=1)
        name = self._order.spec.adapter_name
        run = runs[0] if runs else client.create_run(experiment, tags={_TAG: key}, run_name=name)
        run_id = run.info.run_id
        mlflow.start_run(run_id=run_id, log_system_metrics=False)
        mlflow.log_params(settings)
        self._async_log = True
        return max((metric.step for metric in client.get_metric_history(run_id, "loss")), default=-1)

    def end(self, failed: bool) -> None:
        """What is on its way is sent first."""
        self._ml_flow.flush_async_logging()
        self._ml_flow.end_run("FAILED" if failed else "FINISHED")


class Wandb(_Told, WandbCallback):  # type: ignore[misc]  # the library leaves it untyped
    """As WANDB_PROJECT (`tunetrial`), WANDB_ENTITY, WANDB_API_KEY and WANDB_MODE say."""

    library = "Weights & Biases"

    def begin(self, key: str, settings: dict[str, Any]) -> int:
        """With all that the library would tell of machine, user and program switched off."""
        wandb, folder = self._wandb, Path(self._order.checkpoints_dir)
        quiet = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            save_code=False,
            host="",
            username="",
            email="",
            program="",
            program_relpath="",
            program_abspath="",
            x_executable="",
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=1.0,
            silent=True,
        )
        chosen = wandb.setup().settings
        kept = "root_dir" in chosen.model_fields_set
        if chosen.mode == "offline" and not kept:
            raise ValueError("WANDB_MODE is offline: set WANDB_DIR to the folder in which runs are to stay")
        run = wandb.init(
            project=chosen.project or _PROJECT,
            name=self._order.spec.adapter_name,
            id=key,
            resume="allow",
            config=settings,
            allow_val_change=True,
            dir=None if kept else str(folder),
            settings=quiet,
        )
        run.define_metric("train/global_step")
        run.define_metric("*", step_metric="train/global_step", step_sync=True)
        return int(run.summary.get("train/global_step", -1))

    def end(self, failed: bool) -> None:
        """What is on its way is sent first."""
        self._wandb.finish(exit_code=1 if failed else 0)


REPORTS: dict[str, Callable[[Order], _Told]] = {"mlflow": Mlflow, "wandb": Wandb}
