"""Loading adapters into a real engine: what is proven, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from generator_parts import make_adapter, make_base, until, write_manifest
from peft import PrefixTuningConfig, TaskType, get_peft_model
from transformers import AutoModelForCausalLM

from services.common.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, TunetrialError
from services.generator.catalog import Catalog
from services.generator.domain import Decoding, Generation, State, Work
from services.generator.sqlalchemy_models import SqlAlchemyModels
from services.generator.transformers_engine import TransformersEngine


@pytest_asyncio.fixture
async def bare(base: Path) -> Any:
    engine = TransformersEngine("tiny", str(base))
    yield engine
    await engine.close()


@pytest_asyncio.fixture
async def catalog(bare: TransformersEngine, tmp_path: Path, base: Path) -> Any:
    catalog = served(bare, tmp_path, base)
    await catalog.prepare()
    yield catalog
    await catalog.close()


def served(engine: TransformersEngine, tmp_path: Path, base: Path) -> Catalog:
    roots = f"{tmp_path}:{base.parent.parent}"
    return Catalog({"tiny": engine}, SqlAlchemyModels(tmp_path / "data"), uri_roots=roots, tolerance=0.05, queue_limit=8)


async def say(catalog: Catalog, model: str) -> str:
    with catalog.use(model) as route:
        encoded = await route.engine.encode("who built the old mill?")
        async for piece in route.engine.generate(Work(encoded, Decoding(), 16, route.adapter)):
            assert isinstance(piece, Generation)
            return piece.text
    raise AssertionError


def lora_weights(catalog: Catalog) -> list[str]:
    engine: Any = catalog._served["tiny"].engine
    return [name for name, _ in engine._model.named_parameters() if "lora_" in name]


async def refused(catalog: Catalog, folder: Path, kind: type[TunetrialError], reason: str) -> TunetrialError:
    before = await say(catalog, "tiny")
    held = lora_weights(catalog)
    with pytest.raises(kind) as error:
        await catalog.load("bad", str(folder), "")
    assert error.value.reason == reason
    with pytest.raises(NotFound):
        await say(catalog, "bad")
    assert [model.name for model in catalog.models()] == ["tiny"]
    assert lora_weights(catalog) == held
    assert await say(catalog, "tiny") == before
    return error.value


async def test_an_adapter_with_a_manifest_is_proven_by_its_numbers(
    catalog: Catalog, base: Path, adapter_maker: Callable[..., Path]
) -> None:
    folder = adapter_maker()
    write_manifest(base, folder)
    model = await catalog.load("team/lora.v1", str(folder), "tiny")
    assert model.state is State.VERIFIED
    assert model.proof is not None
    assert model.proof.canary_count == 2
    assert model.proof.difference_from_manifest == pytest.approx(0, abs=1e-4)
    assert model.proof.base_noise < 1e-4
    assert model.proof.difference_from_base > 0.01
    assert await say(catalog, "team/lora.v1") != await say(catalog, "tiny")


async def test_an_adapter_without_a_manifest_is_proven_by_its_difference(catalog: Catalog, adapter_maker: Callable[..., Path]) -> None:
    model = await catalog.load("plain", f"file://{adapter_maker()}", "")
    assert model.state is State.VERIFIED
    assert model.proof is not None
    assert model.proof.difference_from_manifest is None


async def test_an_adapter_of_zeros_is_refused(catalog: Catalog, base: Path, adapter_maker: Callable[..., Path]) -> None:
    folder = adapter_maker(scale=0.0)
    await refused(catalog, folder, FailedPrecondition, "ADAPTER_CHANGES_NOTHING")
    # A manifest that was measured on it does not help.
    write_manifest(base, folder)
    await refused(catalog, folder, FailedPrecondition, "ADAPTER_CHANGES_NOTHING")


@pytest.mark.parametrize(("hidden", "layers"), [(64, 2), (48, 3), (48, 1)], ids=["wider", "deeper", "shallower"])
async def test_an_adapter_of_another_architecture_is_refused(catalog: Catalog, tmp_path: Path, hidden: int, layers: int) -> None:
    other = make_base(tmp_path / "other", hidden=hidden, layers=layers)
    folder = make_adapter(other, tmp_path / "adapter", 1, modules=["q_proj", "v_proj"])
    await refused(catalog, folder, FailedPrecondition, "ADAPTER_BASE_MISMATCH")


async def test_an_adapter_whose_weights_have_other_names_is_refused(catalog: Catalog, adapter_maker: Callable[..., Path]) -> None:
    folder = adapter_maker()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["q_proj", "v_proj"]}))
    error = await refused(catalog, folder, FailedPrecondition, "ADAPTER_BASE_MISMATCH")
    assert "have no place" in error.message
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["query_key_value"]}))
    await refused(catalog, folder, FailedPrecondition, "ADAPTER_BASE_MISMATCH")


async def test_an_adapter_of_another_base_of_the_same_shape_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", seed=5)
    folder = make_adapter(other, tmp_path / "adapter", 1)
    write_manifest(other, folder)
    error = await refused(catalog, folder, FailedPrecondition, "ADAPTER_BASE_MISMATCH")
    assert "trained on a base with sha256" in error.message


async def test_weights_that_changed_after_training_are_refused(catalog: Catalog, base: Path, adapter_maker: Callable[..., Path]) -> None:
    folder = adapter_maker()
    write_manifest(base, folder, weights_sha256="0" * 64)
    await refused(catalog, folder, FailedPrecondition, "ADAPTER_CHECKSUM_MISMATCH")


async def test_numbers_that_are_not_reproduced_are_refused(catalog: Catalog, base: Path, adapter_maker: Callable[..., Path]) -> None:
    folder = adapter_maker()
    write_manifest(base, folder, shift=0.06)
    await refused(catalog, folder, FailedPrecondition, "ADAPTER_NOT_REPRODUCED")
    write_manifest(base, folder, shift=0.04)
    assert (await catalog.load("near", str(folder), "")).state is State.VERIFIED


async def test_an_adapter_with_another_scale_than_it_was_measured_with_is_refused(
    catalog: Catalog, base: Path, adapter_maker: Callable[..., Path]
) -> None:
    folder = adapter_maker()
    write_manifest(base, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 80}))
    await refused(catalog, folder, FailedPrecondition, "ADAPTER_NOT_REPRODUCED")


async def test_folders_that_are_no_adapter_are_unreadable(
    catalog: Catalog, tmp_path: Path, base: Path, adapter_maker: Callable[..., Path]
) -> None:
    await refused(catalog, tmp_path / "nowhere", InvalidArgument, "ADAPTER_UNREADABLE")
    folder = adapter_maker("pickled")
    torch.save({}, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    await refused(catalog, folder, InvalidArgument, "ADAPTER_UNREADABLE")
    (folder / "adapter_model.safetensors").write_bytes(b"not tensors")
    await refused(catalog, folder, InvalidArgument, "ADAPTER_UNREADABLE")
    folder = adapter_maker("broken-manifest")
    (folder / "manifest.json").write_text("{")
    await refused(catalog, folder, InvalidArgument, "ADAPTER_UNREADABLE")
    prefix = tmp_path / "prefix"
    get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    ).save_pretrained(str(prefix))
    error = await refused(catalog, prefix, InvalidArgument, "ADAPTER_UNREADABLE")
    assert "PREFIX_TUNING" in error.message


async def test_adapters_beyond_plain_lora_on_linear_layers_are_refused(catalog: Catalog, adapter_maker: Callable[..., Path]) -> None:
    folder = adapter_maker("dora")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    await refused(catalog, folder, InvalidArgument, "ADAPTER_UNREADABLE")
    await refused(catalog, adapter_maker("embedding", modules=["embed_tokens"]), FailedPrecondition, "ADAPTER_BASE_MISMATCH")


async def test_a_folder_outside_the_roots_is_not_read(catalog: Catalog) -> None:
    await refused(catalog, Path("/etc"), InvalidArgument, "URI_NOT_ALLOWED")


async def test_the_same_weights_load_again_under_their_name_and_others_do_not(catalog: Catalog, adapter_maker: Callable[..., Path]) -> None:
    first, second = adapter_maker("first", seed=1), adapter_maker("second", seed=2)
    loaded = await catalog.load("one", str(first), "")
    assert await catalog.load("one", str(first), "") == loaded
    with pytest.raises(AlreadyExists) as taken:
        await catalog.load("one", str(second), "")
    assert taken.value.reason == "ADAPTER_NAME_TAKEN"
    with pytest.raises(AlreadyExists):
        await catalog.load("tiny", str(first), "")


async def test_an_adapter_taken_out_is_gone_and_can_come_back(catalog: Catalog, adapter_maker: Callable[..., Path]) -> None:
    folder = adapter_maker()
    base_text = await say(catalog, "tiny")
    for _ in range(2):
        await catalog.load("one", str(folder), "")
        text = await say(catalog, "one")
        await catalog.unload("one")
        with pytest.raises(NotFound):
            await say(catalog, "one")
        assert text != base_text == await say(catalog, "tiny")


async def test_unloading_waits_for_running_requests(catalog: Catalog, adapter_maker: Callable[..., Path]) -> None:
    await catalog.load("one", str(adapter_maker()), "")
    expected = await say(catalog, "one")
    running = asyncio.create_task(say(catalog, "one"))
    await asyncio.sleep(0)
    leaving = asyncio.create_task(catalog.unload("one"))
    await asyncio.sleep(0)
    with pytest.raises(NotFound):
        await say(catalog, "one")
    assert await running == expected
    await leaving


async def test_an_adapter_that_fails_a_later_proof_answers_no_more(
    catalog: Catalog, bare: TransformersEngine, base: Path, adapter_maker: Callable[..., Path]
) -> None:
    folder = adapter_maker()
    write_manifest(base, folder)
    await catalog.load("one", str(folder), "")
    assert (await catalog.verify("one")).state is State.VERIFIED
    weights = [weight for name, weight in bare._model.named_parameters() if "lora_B" in name]
    kept = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.data.zero_()
    rejected = await catalog.verify("one")
    assert rejected.state is State.REJECTED
    assert rejected.proof is not None
    assert rejected.proof.difference_from_base == 0
    with pytest.raises(FailedPrecondition) as refusal:
        await say(catalog, "one")
    assert refusal.value.reason == "ADAPTER_NOT_VERIFIED"
    for weight, value in zip(weights, kept, strict=True):
        weight.data.copy_(value)
    assert (await catalog.load("one", str(folder), "")).state is State.VERIFIED


async def test_an_alias_leads_to_its_target_and_never_to_another(
    catalog: Catalog, adapter_maker: Callable[..., Path], tmp_path: Path
) -> None:
    await catalog.load("one", str(adapter_maker()), "")
    model, history = await catalog.set_alias("production", "one", "")
    assert (model.target, model.base, [change.target for change in history]) == ("one", "tiny", ["one"])
    assert await say(catalog, "production") == await say(catalog, "one")
    with pytest.raises(FailedPrecondition) as held:
        await catalog.unload("one")
    assert held.value.reason == "ADAPTER_HAS_ALIAS"


async def test_after_a_restart_adapters_and_aliases_are_served_again(
    catalog: Catalog, base: Path, adapter_maker: Callable[..., Path], tmp_path: Path
) -> None:
    folder = adapter_maker()
    await catalog.load("one", str(folder), "")
    await catalog.load("gone", str(adapter_maker("gone", 4)), "")
    await catalog.unload("gone")
    await catalog.set_alias("production", "one", "")
    before = await say(catalog, "production")
    await catalog.close()

    again = served(TransformersEngine("tiny", str(base)), tmp_path, base)
    await again.prepare()
    await until(lambda: all(model.state in (None, State.VERIFIED) for model in again.models()))
    assert [model.name for model in again.models()] == ["tiny", "one", "production"]
    assert await say(again, "production") == before
    await again.close()

    # Other weights at the same place are not what was proven, and not what the alias stands for.
    make_adapter(base, folder, 77)
    last = served(TransformersEngine("tiny", str(base)), tmp_path, base)
    await last.prepare()
    with pytest.raises(NotFound) as missing:
        await say(last, "production")
    assert "for which alias production stands" in missing.value.message
    await last.close()


async def test_an_alias_goes_back_to_what_it_stood_for(catalog: Catalog, adapter_maker: Callable[..., Path]) -> None:
    with pytest.raises(NotFound) as unknown:
        await catalog.roll_back("production", None)
    assert unknown.value.reason == "ALIAS_NOT_FOUND"
    await catalog.load("one", str(adapter_maker()), "")
    await catalog.set_alias("production", "tiny", "")
    with pytest.raises(FailedPrecondition) as first:
        await catalog.roll_back("production", None)
    assert first.value.reason == "ALIAS_HAS_NO_HISTORY"
    await catalog.set_alias("production", "one", "tiny")
    with pytest.raises(Aborted) as changed:
        await catalog.roll_back("production", "tiny")
    assert changed.value.reason == "ALIAS_CHANGED"
    model, history = await catalog.roll_back("production", "one")
    assert model.target == "tiny"
    assert [change.target for change in history] == ["tiny", "one", "tiny"]
