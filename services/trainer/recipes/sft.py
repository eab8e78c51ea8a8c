"""Supervised fine-tuning: TRL's SFTTrainer with a PEFT LoRA adapter on data that are tokenized beforehand, so that every count is exact.

Read `train` from top to bottom: base, data, trainer, canaries, adapter. Knows no queue and no wire.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-untyped]  # the library ships no types
from huggingface_hub import snapshot_download
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PrinterCallback, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from services.common.errors import FailedPrecondition, InvalidArgument
from services.trainer import canaries, dataset, manifest
from services.trainer.dataset import Example
from services.trainer.domain import Adapter, DatasetRead, Event, Lora, Optimization, Order, Progress, Progressed
from services.trainer.inputs import HUB_PATTERNS, file_sha256, text_sha256, weights_sha256
from services.trainer.records import spec_json

_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")


def train(order: Order, folder: Path, report: Callable[[Event], None]) -> Adapter:
    """Trains and publishes the adapter; `folder` is the job's own.

    Raises TunetrialError, or what the libraries raise; then nothing is published.
    """
    torch.set_num_threads(order.threads)
    spec, lora, course = order.spec, order.spec.method.lora, order.spec.method.optimization

    base, base_sha256 = checked_base(order)
    tokenizer = load_tokenizer(base)
    model = load_model(base, lora.four_bit)
    check_targets(model, lora.target_modules)
    context = context_of(model)
    max_length = length_limit(course.max_length, context)

    check_unchanged(order)
    examples, found = dataset.prepare(tokenizer, dataset.read(Path(order.inputs.dataset_path), "dataset_uri"), max_length, "dataset_uri")
    report(DatasetRead(found))
    evaluation = None
    if order.inputs.evaluation_path is not None:
        rows = dataset.read(Path(order.inputs.evaluation_path), "evaluation_uri")
        evaluation = to_dataset(dataset.prepare(tokenizer, rows, max_length, "evaluation_uri")[0])
    chosen = canaries.choose(tokenizer, examples, context)

    partial = manifest.partial_folder(Path(order.adapters_dir), order.job_id)
    progress = ProgressReporter(report)
    trainer = SFTTrainer(
        model=model,
        args=settings(course, spec.seed, folder / "trl", evaluation is not None),
        train_dataset=to_dataset(examples),
        eval_dataset=evaluation,
        processing_class=tokenizer,
        peft_config=adapter_settings(lora),
        callbacks=[progress],
    )
    # Steps are reported; printed as well, they would bury what went wrong in the log.
    trainer.remove_callback(PrinterCallback)
    trainer.train()

    trained: Any = trainer.model
    trained.eval()
    measured = canaries.measure(trained, chosen)
    # The path of the base on this machine means nothing elsewhere.
    trained.peft_config["default"].base_model_name_or_path = spec.base
    # The embedding layers are the base's own, and asking the hub whether they changed would need the network.
    trained.save_pretrained(str(partial), save_embedding_layers=False)
    final = Path(order.adapters_dir) / spec.adapter_name
    adapter = Adapter(
        name=spec.adapter_name,
        uri=str(final),
        base=spec.base,
        base_sha256=base_sha256,
        weights_sha256=file_sha256(partial / manifest.WEIGHTS),
        dataset_sha256=order.inputs.dataset_sha256,
        job_id=order.job_id,
        final_loss=progress.final_loss,
        trained_tokens=progress.tokens,
        training_s=progress.seconds,
        dataset=found,
        library_versions={"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
        create_time=datetime.now(UTC),
    )
    more = {
        "work": order.work,
        "seed": spec.seed,
        "recipe": spec_json(spec),
        "max_length": max_length,
        "base_revision": order.inputs.base_revision,
        "evaluation_sha256": order.inputs.evaluation_sha256,
        "evaluation_loss": progress.last.evaluation_loss,
        "canary_dtype": str(trained.dtype).removeprefix("torch."),
        "canaries": measured,
    }
    manifest.write(partial, adapter, more)
    manifest.publish(partial, final, order.job_id)
    return adapter


def checked_base(order: Order) -> tuple[Path, str]:
    """Folder and sha256 of the base, fetched if need be. Raises FailedPrecondition BASE_CHANGED."""
    inputs = order.inputs
    if inputs.base_path is None:
        assert inputs.base_hub_name is not None  # noqa: S101  a base is a folder or comes from the hub
        folder = Path(snapshot_download(inputs.base_hub_name, revision=inputs.base_revision, allow_patterns=HUB_PATTERNS))
        return folder, weights_sha256(folder)
    folder = Path(inputs.base_path)
    sha256 = weights_sha256(folder)
    if (sha256, text_sha256(folder)) != (inputs.base_sha256, inputs.base_text_sha256):
        message = "the files of base {base} changed since the job was created: create the job again"
        raise FailedPrecondition("BASE_CHANGED", message, base=order.spec.base)
    return folder, sha256


def check_unchanged(order: Order) -> None:
    """Raises FailedPrecondition DATASET_CHANGED when data are not those that the job was created for."""
    inputs = order.inputs
    for path, expected in ((inputs.dataset_path, inputs.dataset_sha256), (inputs.evaluation_path, inputs.evaluation_sha256)):
        if path is not None and file_sha256(Path(path)) != expected:
            message = "{name} changed since the job was created: create the job again"
            raise FailedPrecondition("DATASET_CHANGED", message, name=Path(path).name)


def load_tokenizer(base: Path) -> Any:
    """The base's tokenizer. Raises FailedPrecondition when it cannot hold a conversation."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(base), trust_remote_code=False)
    if not tokenizer.chat_template:
        message = "the base has no chat template: use an instruction-tuned base, or put a chat_template.jinja into its folder"
        raise FailedPrecondition("CHAT_TEMPLATE_MISSING", message)
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise FailedPrecondition(
            "PAD_TOKEN_MISSING", "the base's tokenizer names neither pad_token nor eos_token: name one in its configuration"
        )
    return tokenizer


def load_model(base: Path, four_bit: bool) -> Any:
    """The base: in float32 on CPU, in bfloat16 on CUDA. Raises FailedPrecondition CUDA_NEEDED or LIBRARY_MISSING."""
    cuda = torch.cuda.is_available()
    quantization = None
    if four_bit:
        if not cuda:
            raise FailedPrecondition("CUDA_NEEDED", "four_bit needs a CUDA device, and there is none: leave four_bit unset")
        if find_spec("bitsandbytes") is None:
            raise FailedPrecondition("LIBRARY_MISSING", "four_bit needs bitsandbytes: install it where the trainer runs")
        # The settings of the QLoRA paper (arXiv 2305.14314): NormalFloat 4, double quantization, computed in bfloat16.
        quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # the library leaves it untyped
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
        )
    return AutoModelForCausalLM.from_pretrained(
        str(base),
        dtype=torch.bfloat16 if cuda else torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        quantization_config=quantization,
        device_map={"": 0} if four_bit else None,
    )


def check_targets(model: Any, targets: Sequence[str]) -> None:
    """Raises InvalidArgument TARGET_MODULES_UNKNOWN for a name that no linear layer bears; PEFT passes over it as long as another fits."""
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)} - {"lm_head"}
    unknown = [target for target in targets if not any(name == target or name.endswith(f".{target}") for name in linear)]
    if unknown:
        known = sorted({name.rpartition(".")[2] for name in linear})
        message = "target modules {unknown} match nothing in the base: use some of {known}, or none for all linear layers"
        raise InvalidArgument("TARGET_MODULES_UNKNOWN", message, unknown=", ".join(unknown), known=", ".join(known))


def context_of(model: Any) -> int:
    """Longest sequence of the model in tokens. Raises FailedPrecondition CONTEXT_UNKNOWN."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(context, int):
        raise FailedPrecondition("CONTEXT_UNKNOWN", "the base's config.json does not say max_position_embeddings: add it there")
    return context


def length_limit(asked: int | None, context: int) -> int:
    """Longest example in tokens. Raises InvalidArgument MAX_LENGTH_TOO_LONG."""
    if asked is not None and asked > context:
        message = "max_length {asked} is more than the base's context of {context} tokens: lower it or leave it unset"
        raise InvalidArgument("MAX_LENGTH_TOO_LONG", message, asked=asked, context=context)
    return asked or context


def to_dataset(examples: Sequence[Example]) -> Dataset:
    """What the trainer reads."""
    return Dataset.from_dict({"input_ids": [example.input_ids for example in examples], "labels": [example.labels for example in examples]})


def adapter_settings(lora: Lora) -> LoraConfig:
    """LoRA as PEFT takes it."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # declared int, used as a number
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or "all-linear",
        use_rslora=lora.rank_stabilized,
        use_dora=lora.dora,
    )


def settings(course: Optimization, seed: int, folder: Path, evaluate: bool) -> SFTConfig:
    """The course as TRL takes it."""
    cuda = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(folder),
        seed=seed,
        num_train_epochs=course.epochs or 1,
        max_steps=course.max_steps or -1,
        per_device_train_batch_size=course.micro_batch_size,
        per_device_eval_batch_size=course.micro_batch_size,
        gradient_accumulation_steps=course.batch_size // course.micro_batch_size,
        learning_rate=course.learning_rate,
        # The library's own "constant" knows no warm-up.
        lr_scheduler_type="constant_with_warmup" if course.schedule == "constant" else course.schedule,
        # Below 1 it is a share of the steps, from 1 on a number of steps.
        warmup_steps=min(course.warmup_ratio, 1 - 1e-9),
        weight_decay=course.weight_decay,
        max_grad_norm=course.max_gradient_norm,
        eval_strategy="epoch" if evaluate else "no",
        save_strategy="no",
        logging_steps=1,
        # A loss that is not a number must be seen, not averaged away.
        logging_nan_inf_filter=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not cuda,
        bf16=cuda,
        # Saves memory for a fifth of the speed: worth it where memory is the GPU's.
        gradient_checkpointing=cuda,
        # Examples of like length go together, so that little is padding.
        train_sampling_strategy="group_by_length",
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
    )


class ProgressReporter(TrainerCallback):
    """Turns the trainer's logs into progress, and keeps what the manifest says of the course."""

    def __init__(self, report: Callable[[Event], None]) -> None:
        self._report = report
        self._losses: list[float] = []
        self._began = self._ended = 0.0
        self.last = Progress()
        self.tokens = 0

    @property
    def final_loss(self) -> float:
        """Mean over the last tenth of the steps, at least one."""
        tail = self._losses[-math.ceil(len(self._losses) / 10) :]
        return sum(tail) / len(tail)

    @property
    def seconds(self) -> float:
        """How long training took."""
        return self._ended - self._began

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._began = time.monotonic()
        self.last = Progress(step_count=state.max_steps)
        self._report(Progressed(self.last))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Reports a step or an evaluation. Raises FailedPrecondition LOSS_NOT_FINITE."""
        logs = logs or {}
        if "eval_loss" in logs:
            self._send(evaluation_loss=logs["eval_loss"])
        if "loss" not in logs:
            return
        loss, elapsed = logs["loss"], time.monotonic() - self._began
        if not math.isfinite(loss):
            message = "the loss is no number any more at step {step} of {count}: lower learning_rate, or look for broken rows in the data"
            raise FailedPrecondition("LOSS_NOT_FINITE", message, step=state.global_step, count=state.max_steps)
        self._losses.append(loss)
        self.tokens = int(logs["num_tokens"])
        self._send(
            step=state.global_step,
            step_count=state.max_steps,
            loss=loss,
            tokens_per_second=self.tokens / elapsed,
            remaining_s=elapsed / state.global_step * (state.max_steps - state.global_step),
            gradient_norm=logs["grad_norm"],
            learning_rate=logs["learning_rate"],
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops the clock."""
        self._ended = time.monotonic()

    def _send(self, **changes: Any) -> None:
        self.last = replace(self.last, **changes)
        self._report(Progressed(self.last))
