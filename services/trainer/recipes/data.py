"""The data of a job: found unchanged, and read for training and evaluation alike. Knows no format and no method of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from services.common.errors import FailedPrecondition
from services.trainer.domain import DatasetRead, DatasetReport, Event, Order
from services.trainer.inputs import file_sha256

_Example = TypeVar("_Example")


def read(
    order: Order, report: Callable[[Event], None], prepare: Callable[[Path, str], tuple[Sequence[_Example], DatasetReport]]
) -> tuple[Sequence[_Example], DatasetReport, Sequence[_Example] | None]:
    """Examples to train on, what was learnt on the way (which is reported), and examples to evaluate on, None for none.

    `prepare` makes examples of a file; the field of the request that named it is for errors. Raises FailedPrecondition DATASET_CHANGED, and
    what `prepare` does.
    """
    inputs = order.inputs
    _check_unchanged(inputs.dataset_path, inputs.dataset_sha256)
    if inputs.evaluation_path is not None:
        _check_unchanged(inputs.evaluation_path, inputs.evaluation_sha256)
    examples, found = prepare(Path(inputs.dataset_path), "dataset_uri")
    report(DatasetRead(found))
    evaluation = None if inputs.evaluation_path is None else prepare(Path(inputs.evaluation_path), "evaluation_uri")[0]
    return examples, found, evaluation


def _check_unchanged(path: str, expected: str | None) -> None:
    if file_sha256(Path(path)) != expected:
        message = "{name} changed since the job was created: create the job again"
        raise FailedPrecondition("DATASET_CHANGED", message, name=Path(path).name)
