"""Contestant: the script that TRL's documentation shows, with an adapter, on one thread: `python -m benchmarks.trainer.plain TASK`."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from datasets import load_dataset  # type: ignore[import-untyped]  # the library ships no types
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

_TIMED = 2
"""Steps before the clock starts: the first are slower for everybody."""


class Clock(TrainerCallback):
    """When steps ended, and the tokens seen by then."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.evaluation_loss: float | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes it."""
        self.ends.append(time.time())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """The same of tokens."""
        if "loss" in logs:
            self.tokens.append(int(logs["num_tokens"]))
        self.evaluation_loss = logs.get("eval_loss", self.evaluation_loss)

    def figures(self) -> dict[str, Any]:
        """What the benchmark asks."""
        seconds = self.ends[-1] - self.ends[_TIMED - 1]
        per_s = (self.tokens[-1] - self.tokens[_TIMED - 1]) / seconds
        return {"first_step": self.ends[0], "tokens_per_s": per_s, "evaluation_loss": self.evaluation_loss}


def main(task: dict[str, Any]) -> None:
    """Trains and prints the figures as JSON."""
    torch.set_num_threads(1)
    clock = Clock()
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(task["base"], dtype=torch.float32),
        args=SFTConfig(
            output_dir=task["folder"],
            seed=task["seed"],
            num_train_epochs=task["epochs"],
            per_device_train_batch_size=task["batch"],
            per_device_eval_batch_size=task["batch"],
            learning_rate=task["rate"],
            warmup_steps=0.03,
            assistant_only_loss=True,
            max_length=1024,
            logging_steps=1,
            save_strategy="no",
            eval_strategy="epoch",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            **task["more"],
        ),
        train_dataset=load_dataset("json", data_files=task["train"], split="train"),
        eval_dataset=load_dataset("json", data_files=task["evaluation"], split="train"),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"),
        callbacks=[clock],
    )
    trainer.train()
    print(json.dumps(clock.figures()))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
