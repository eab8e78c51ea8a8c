"""Settings and their defaults, page tokens, words of failures, adapters on disk. No library that trains is needed."""

from __future__ import annotations

import errno
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.common.errors import InvalidArgument
from services.trainer import manifest
from services.trainer.domain import Adapter, DatasetReport, Exited
from services.trainer.failures import words_of_error, words_of_exit
from services.trainer.folder import own_folder
from services.trainer.local_launcher import job_environment
from services.trainer.paging import page_size, page_start, page_token
from services.trainer.records import SPEC, spec_json
from services.trainer.settings import Settings
from services.trainer.spec import Lora, Optimization, SupervisedFineTuning, TrainingSpec


def test_what_is_left_open_gets_the_defaults_of_the_contract() -> None:
    assert Lora.given() == Lora(16, 32.0, 0.0, (), False, False, False)
    assert Lora.given(rank=4).alpha == 8
    assert Optimization.given() == Optimization(3.0, None, 2e-4, 16, 16, None, 0.03, 0.0, "linear", 1.0)
    assert Optimization.given(max_steps=5).epochs is None


def test_zero_is_a_value_and_not_a_gap() -> None:
    assert Optimization.given(warmup_ratio=0.0).warmup_ratio == 0
    with pytest.raises(InvalidArgument, match=r"lora\.alpha must be above 0, not 0"):
        Lora.given(alpha=0.0)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": 513}, "rank"),
        ({"dropout": 1.0}, "dropout"),
        ({"alpha": float("nan")}, "alpha"),
        ({"target_modules": ["q_proj", ""]}, "target_modules"),
    ],
)
def test_adapter_settings_out_of_range_name_their_field(settings: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        Lora.given(**settings)  # type: ignore[arg-type]  # one setting at a time, of any type
    assert error.value.metadata["field"] == f"lora.{field}"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"epochs": 0.0}, "epochs"),
        ({"epochs": 1.0, "max_steps": 5}, "max_steps"),
        ({"max_steps": 0}, "max_steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 16, "micro_batch_size": 5}, "micro_batch_size"),
        ({"micro_batch_size": 0}, "micro_batch_size"),
        ({"max_length": 1}, "max_length"),
        ({"warmup_ratio": 1.1}, "warmup_ratio"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"schedule": "square"}, "schedule"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm"),
    ],
)
def test_optimiser_settings_out_of_range_name_their_field(settings: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        Optimization.given(**settings)  # type: ignore[arg-type]  # one setting at a time, of any type
    assert error.value.metadata["field"] == f"optimization.{field}"


def spec(name: str = "one", base: str = "base", dataset: str = "data.jsonl", seed: int = 1) -> TrainingSpec:
    method = SupervisedFineTuning(Lora.given(target_modules=["v_proj", "q_proj"]), Optimization.given())
    return TrainingSpec(name, base, dataset, "", seed, method)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "x" * 129, "ä"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="adapter_name"):
        spec(name)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_the_generators_cannot_take_is_refused(seed: int) -> None:
    with pytest.raises(InvalidArgument, match="seed"):
        spec(seed=seed)


def test_a_spec_survives_being_written_down() -> None:
    assert SPEC.validate_python(spec_json(spec())) == spec()


def test_order_and_repetition_of_target_modules_are_the_same_work() -> None:
    assert Lora.given(target_modules=["v_proj", "q_proj", "v_proj"]) == Lora.given(target_modules=["q_proj", "v_proj"])


def test_a_page_token_opens_its_own_listing_only() -> None:
    token = page_token("jobs ", 7)
    assert page_start("jobs ", token) == 7
    assert page_start("jobs ", "") is None
    for wrong in (token[:-2], "7", "x" * 40, page_token("jobs running", 7), page_token("jobs ", 7).replace("=", "!")):
        with pytest.raises(InvalidArgument) as error:
            page_start("jobs ", wrong)
        assert error.value.reason == "PAGE_TOKEN_INVALID"


def test_a_page_has_1_to_1000_rows() -> None:
    assert page_size(None) == 100
    for wrong in (0, -1, 1001):
        with pytest.raises(InvalidArgument):
            page_size(wrong)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: free space"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "lower micro_batch_size"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "lower micro_batch_size"),
        (MemoryError(), "lower micro_batch_size"),
        (InvalidArgument("X", "say what"), "say what"),
        (RuntimeError("shapes differ"), "training stopped: RuntimeError: shapes differ"),
    ],
)
def test_a_failure_says_what_to_change(error: Exception, advice: str) -> None:
    assert advice in words_of_error(error)


@pytest.mark.parametrize(
    ("exited", "words"),
    [
        (Exited(-9), "(SIGKILL), most often because memory ran out: lower micro_batch_size or max_length, or run fewer jobs at once"),
        (Exited(137), "or max_length, or give its pods more memory (requests and limits in TUNETRIAL_KUBERNETES)"),
        (Exited(-11), "signal 11"),
        (Exited(1, "ImportError: no trl"), "exit code 1 without a result. Its last lines: ImportError: no trl"),
        (Exited(None), "nobody saw why"),
    ],
)
def test_a_process_that_ended_without_a_word_is_explained(exited: Exited, words: str) -> None:
    assert words in words_of_exit(exited)


def adapter(job: str, final: Path) -> Adapter:
    report, time = DatasetReport(3, 1, 0, 30, 9), datetime(2024, 1, 2, tzinfo=UTC)
    return Adapter(final.name, str(final), "base", "b", "w", "d", job, 0.5, 90, 1.5, report, {"torch": "1"}, time)


def made(adapters: Path, job: str) -> Path:
    """A finished adapter that still lies in its partial folder."""
    partial = manifest.partial_folder(adapters, job)
    (partial / manifest.WEIGHTS).write_bytes(b"weights")
    manifest.write(partial, adapter(job, adapters / "one"), {"recipe": spec_json(spec()), "canaries": []})
    return partial


def test_an_adapter_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    files = manifest.AdapterFiles(tmp_path)
    partial = made(tmp_path, "job1")
    assert not files.exists("one")
    assert files.published("one", "job1") is None
    manifest.publish(partial, tmp_path / "one", "job1")
    assert files.published("one", "job1") == adapter("job1", tmp_path / "one")
    assert files.published("one", "job2") is None
    assert not partial.exists()


def test_publishing_twice_is_harmless_for_the_same_job_and_refused_for_another(tmp_path: Path) -> None:
    manifest.publish(made(tmp_path, "job1"), tmp_path / "one", "job1")
    before = (tmp_path / "one" / manifest.MANIFEST).read_bytes()
    manifest.publish(made(tmp_path, "job1"), tmp_path / "one", "job1")
    with pytest.raises(FileExistsError):
        manifest.publish(made(tmp_path, "job2"), tmp_path / "one", "job2")
    assert (tmp_path / "one" / manifest.MANIFEST).read_bytes() == before


def test_what_unfinished_jobs_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    files = manifest.AdapterFiles(tmp_path)
    manifest.publish(made(tmp_path, "job1"), tmp_path / "one", "job1")
    first, second = made(tmp_path, "job2"), made(tmp_path, "job3")
    files.discard_partial("job2")
    assert (first.exists(), second.exists()) == (False, True)
    files.discard_partial()
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_manifest_does_not_tell_where_it_was_made(tmp_path: Path) -> None:
    partial = made(tmp_path, "job1")
    written = json.loads((partial / manifest.MANIFEST).read_text())
    assert "uri" not in written
    assert str(tmp_path) not in (partial / "README.md").read_text()


def test_two_trainers_cannot_share_a_folder(tmp_path: Path) -> None:
    with own_folder(tmp_path), pytest.raises(SystemExit, match="another trainer uses"), own_folder(tmp_path):
        pass


def test_a_training_process_sees_none_of_the_secrets_of_the_service() -> None:
    environment = job_environment({"PATH": "/bin", "OPENAI_API_KEY": "secret", "TUNETRIAL_DATABASE_URL": "secret", "HF_HOME": "/hf"}, 2)
    assert "secret" not in environment.values()
    assert (environment["PATH"], environment["HF_HOME"], environment["OMP_NUM_THREADS"]) == ("/bin", "/hf", "2")


def test_models_are_named_in_pairs_or_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNETRIAL_MODELS", "small=/a/b, big=org/big")
    assert Settings().models == {"small": "/a/b", "big": "org/big"}
    monkeypatch.setenv("TUNETRIAL_MODELS", '{"small": "/a,b"}')
    assert Settings().models == {"small": "/a,b"}
    monkeypatch.setenv("TUNETRIAL_MODELS", "small")
    with pytest.raises(ValueError, match="name=path"):
        Settings()
