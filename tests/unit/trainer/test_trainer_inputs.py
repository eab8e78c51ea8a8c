"""Bases and data as files: what is taken, what is refused, and the hashes that make two jobs the same work."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from services.common.errors import InvalidArgument
from services.trainer.inputs import FileInputs, weights_sha256
from services.trainer.records import work_hash
from services.trainer.spec import DirectPreferenceOptimization, Lora, Optimization, SupervisedFineTuning, TrainingSpec
from tests.unit.trainer.trainer_parts import make_base, questions, write_rows


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_base(tmp_path / "base")
    write_rows(tmp_path / "train.jsonl", questions(3))
    return tmp_path


def spec_of(root: Path, base: str | None = None, dataset: str | None = None, evaluation: str = "") -> TrainingSpec:
    method = SupervisedFineTuning(Lora.given(), Optimization.given())
    return TrainingSpec("one", base or str(root / "base"), dataset or str(root / "train.jsonl"), evaluation, 1, method)


def test_the_hash_of_a_base_is_over_the_hashes_of_its_weight_files(tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(b"two")
    (tmp_path / "a.safetensors").write_bytes(b"one")
    (tmp_path / "config.json").write_bytes(b"{}")
    lines = "".join(f"{name}:{hashlib.sha256(data).hexdigest()}\n" for name, data in (("a.safetensors", b"one"), ("b.safetensors", b"two")))
    assert weights_sha256(tmp_path) == hashlib.sha256(lines.encode()).hexdigest()


async def test_where_files_lie_does_not_matter_but_what_they_hold_does(root: Path) -> None:
    inputs = FileInputs(str(root), {})
    first = spec_of(root)
    work = work_hash(first, await inputs.read(first))
    shutil.copytree(root / "base", root / "copy")
    shutil.copy(root / "train.jsonl", root / "same.jsonl")
    moved = spec_of(root, str(root / "copy"), f"file://{root}/same.jsonl")
    assert work_hash(moved, await inputs.read(moved)) == work
    others = {work}
    for other in (replace(first, seed=2), replace(first, adapter_name="two"), spec_of(root, evaluation=str(root / "train.jsonl"))):
        others.add(work_hash(other, await inputs.read(other)))
    write_rows(root / "train.jsonl", questions(4))
    others.add(work_hash(first, await inputs.read(first)))
    (root / "copy" / "chat_template.jinja").write_text("another")
    others.add(work_hash(moved, await inputs.read(moved)))
    weights = root / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    os.utime(weights, ns=(1, 1))
    others.add(work_hash(first, await inputs.read(first)))
    assert len(others) == 7


async def test_a_base_may_be_named_by_the_settings(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = make_base(tmp_path_factory.mktemp("elsewhere") / "base")
    inputs = await FileInputs(str(root), {"small": str(elsewhere)}).read(spec_of(root, "small"))
    assert inputs.base_path == str(elsewhere)
    assert inputs.base_sha256 == weights_sha256(elsewhere)


async def test_a_hub_base_in_the_local_cache_is_taken_with_its_commit(root: Path) -> None:
    repository = root / "hub" / "models--org--tiny"
    shutil.copytree(root / "base", repository / "snapshots" / "0123abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    for name in ("org/tiny", "small"):
        inputs = await FileInputs(str(root), {"small": "org/tiny"}, root / "hub").read(spec_of(root, name))
        assert (inputs.base_hub_name, inputs.base_revision) == ("org/tiny", "0123abc")
        assert inputs.base_sha256 == weights_sha256(root / "base")


async def test_a_hub_base_that_is_not_here_is_refused_when_the_hub_is_switched_off(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidArgument, match="HF_HUB_OFFLINE is set") as error:
        await FileInputs(str(root), {}, root / "hub").read(spec_of(root, "org/tiny"))
    assert error.value.reason == "BASE_UNREADABLE"


async def test_paths_outside_the_allowed_folders_are_refused_with_their_field(root: Path) -> None:
    inputs = FileInputs(str(root / "base"), {})
    with pytest.raises(InvalidArgument) as error:
        await inputs.read(spec_of(root))
    assert (error.value.reason, error.value.metadata["field"]) == ("URI_NOT_ALLOWED", "spec.dataset_uri")
    inputs = FileInputs(str(root), {})
    for field, spec in (("spec.base", spec_of(root, "/usr")), ("spec.evaluation_uri", spec_of(root, evaluation="s3://bucket/x"))):
        with pytest.raises(InvalidArgument) as error:
            await inputs.read(spec)
        assert (error.value.reason, error.value.metadata["field"]) == ("URI_NOT_ALLOWED", field)


@pytest.mark.parametrize(("missing", "why"), [("config.json", "no config.json"), ("model.safetensors", "no \\*.safetensors")])
async def test_a_folder_that_is_no_base_says_what_it_lacks(root: Path, missing: str, why: str) -> None:
    (root / "base" / missing).unlink()
    with pytest.raises(InvalidArgument, match=why) as error:
        await FileInputs(str(root), {}).read(spec_of(root))
    assert error.value.reason == "BASE_UNREADABLE"


async def test_each_method_has_its_own_data(root: Path) -> None:
    write_rows(root / "pairs.jsonl", [{"prompt": "where", "chosen": "there", "rejected": "here"}])
    inputs, pairs = FileInputs(str(root), {}), str(root / "pairs.jsonl")
    dpo = DirectPreferenceOptimization.given(Lora.given(), Optimization.given())
    assert (await inputs.read(replace(spec_of(root, dataset=pairs), method=dpo))).dataset_path == pairs
    with pytest.raises(InvalidArgument, match="it holds messages rows, but method dpo learns from") as error:
        await inputs.read(replace(spec_of(root, dataset=pairs, evaluation=str(root / "train.jsonl")), method=dpo))
    assert (error.value.reason, error.value.metadata["field"]) == ("DATASET_UNREADABLE", "spec.evaluation_uri")
    with pytest.raises(InvalidArgument, match="it holds preference rows, from which method dpo learns") as error:
        await inputs.read(spec_of(root, dataset=pairs))
    assert (error.value.reason, error.value.metadata["field"]) == ("DATASET_UNREADABLE", "spec.dataset_uri")
