"""The proof that an adapter is what it says and is applied. Knows folders, manifests and the engine's port; no model library."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.common.errors import FailedPrecondition, Internal, TunetrialError
from services.generator.adapter_config import ADAPTER_FILES, is_full_model, unreadable, virtual_tokens
from services.generator.domain import Base, Canary, Decoding, Engine, Generation, Proof, Turn, Work
from services.generator.model_files import base_sha256, file_sha256

# For adapters without a manifest: any text tells whether an adapter changes anything.
_OWN_CANARIES = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Answer yes or no: is water wet?", "yes"),
    ("Who wrote the report, and when?", "It was written by the committee in 1987, after the second meeting."),
)


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """What a folder says of its adapter; None and empty where no manifest says it."""

    folder: Path
    weights_sha256: str
    config_sha256: str
    manifest_weights_sha256: str | None = None
    manifest_base_sha256: str | None = None
    canaries: tuple[Canary, ...] = ()
    virtual_tokens: int = 0
    """Tokens of the context that a soft prompt takes."""
    hosted_model: str = ""
    """Name of the fine-tuned model at the provider that keeps it; then there is no folder."""

    def check(self, base: Base) -> None:
        """Raises FailedPrecondition ADAPTER_CHECKSUM_MISMATCH or ADAPTER_BASE_MISMATCH where the manifest says otherwise."""
        if self.manifest_weights_sha256 not in (None, self.weights_sha256):
            raise FailedPrecondition(
                "ADAPTER_CHECKSUM_MISMATCH",
                "the weights in {uri} have sha256 {found}, their manifest says {expected}: bring the adapter again",
                uri=str(self.folder),
                found=self.weights_sha256,
                expected=str(self.manifest_weights_sha256),
            )
        # What cannot be read of an engine elsewhere is left to the proof.
        if base.weights_sha256 and self.manifest_base_sha256 not in (None, base.weights_sha256):
            raise FailedPrecondition(
                "ADAPTER_BASE_MISMATCH",
                "the adapter in {uri} was trained on a base with sha256 {expected}; {base} has {found}",
                uri=str(self.folder),
                base=base.name,
                found=base.weights_sha256,
                expected=str(self.manifest_base_sha256),
            )


def read_adapter(folder: Path) -> AdapterFiles:
    """Hashes and manifest of an adapter's folder. Raises InvalidArgument ADAPTER_UNREADABLE."""
    try:
        if is_full_model(folder):
            config, weights = file_sha256(folder / "config.json"), base_sha256(folder)
            if not weights:
                raise unreadable(folder, "there are no *.safetensors in that folder")
        else:
            config, weights = (file_sha256(folder / name) for name in ADAPTER_FILES)
        files = AdapterFiles(folder, weights, config, virtual_tokens=virtual_tokens(folder))
        path = folder / "manifest.json"
        if not path.exists():
            return files
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return replace(
            files,
            manifest_weights_sha256=manifest.get("weights_sha256"),
            manifest_base_sha256=manifest.get("base_sha256"),
            canaries=tuple(_canary(canary) for canary in manifest.get("canaries", ())),
        )
    except OSError as error:
        raise unreadable(folder, f"{error.filename or folder}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(folder, f"manifest.json: {type(error).__name__}: {error}") from error


class MixedModels(FailedPrecondition):
    """A replica answers in the name of its base with what an adapter gives."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A proof, and the canary on which base and adapter differ most with the log-probabilities that both gave its tokens, in nats."""

    proof: Proof
    canary: Canary
    base: tuple[float, ...]
    adapted: tuple[float, ...]


async def prove(engine: Engine, adapter: str, canaries: Sequence[Canary], tolerance: float, replica: str) -> Evidence:
    """Scores canary answers under base and adapter on a replica, in batches that mix them as requests will.

    The base's noise is the difference between a base row with another base row beside it and the same row alone. The adapter's row
    takes the place of a base row in a batch of the same shape, so an adapter that adds nothing gives the same numbers to the last bit
    on a deterministic engine, and no more than noise elsewhere.
    """
    canaries = tuple(canaries) or await _own_canaries(engine)
    from_base, noise, from_manifest = -1.0, 0.0, None
    telling: tuple[Canary, tuple[float, ...], tuple[float, ...]] | None = None
    for canary in canaries:
        # Both second rows: an adapter's row stands after the base's, and the place in a batch may change the last bit.
        _, base = await engine.score([(None, canary), (None, canary)], replica)
        beside, adapted = await engine.score([(None, canary), (adapter, canary)], replica)
        (alone,) = await engine.score([(None, canary)], replica)
        noise = max(noise, _distance(base, alone))
        if _distance(beside, base) > max(noise, tolerance, _distance(beside, adapted)):
            raise MixedModels(
                "ADAPTER_REACHES_BASE",
                "beside adapter {name}, rows of the base are answered by an adapter: the engine mixes its models",
                name=adapter,
            )
        if not all(map(math.isfinite, adapted)):
            raise FailedPrecondition("ADAPTER_NOT_REPRODUCED", "adapter {name} gives log-probabilities that are no numbers", name=adapter)
        difference = _distance(adapted, base)
        if difference > from_base:
            from_base, telling = difference, (canary, base, adapted)
        # The base as well: an adapter may be applied to another base than it was trained on.
        for measured, recorded in ((base, canary.base_log_probabilities), (adapted, canary.adapter_log_probabilities)):
            if recorded is not None:
                from_manifest = max(from_manifest or 0.0, _distance(measured, recorded))
    assert telling is not None  # noqa: S101  there is always a canary
    return Evidence(Proof(len(canaries), from_base, noise, from_manifest, tolerance, datetime.now(UTC)), *telling)


async def prove_by_name(engine: Engine, adapter: str, replica: str) -> Evidence:
    """Asks for one token, and takes down who answered.

    Of what a provider keeps nothing can be measured; but it names the model in each answer, and the engine refuses an answer in another
    name. Raises FailedPrecondition MODEL_DIFFERS.
    """
    canary = Canary((Turn("user", _OWN_CANARIES[0][0]),), "")
    # A temperature of 1 is what every model takes.
    work = Work(await engine.encode(canary.prompt), Decoding(max_tokens=1, temperature=1.0), 1, adapter, frozenset((replica,)))
    answered_as = ""
    try:
        async with contextlib.aclosing(engine.generate(work)) as parts:
            async for part in parts:
                if isinstance(part, Generation):
                    answered_as = part.snapshot
    except Internal as error:
        raise FailedPrecondition(error.reason, "adapter {name} is not proven: {why}", name=adapter, why=error.message) from error
    return Evidence(Proof(0, 0.0, 0.0, None, 0.0, datetime.now(UTC), answered_as=answered_as), canary, (), ())


def worst(found: Iterable[Evidence]) -> Proof | None:
    """The proof that holds for all replicas: the newest, with the differences of the worst. None without any."""
    proofs = sorted((one.proof for one in found), key=lambda proof: proof.time)
    if not proofs:
        return None
    manifest = [proof.difference_from_manifest for proof in proofs if proof.difference_from_manifest is not None]
    return replace(
        proofs[-1],
        difference_from_base=min(proof.difference_from_base for proof in proofs),
        base_noise=max(proof.base_noise for proof in proofs),
        difference_from_manifest=max(manifest) if manifest else None,
        replica_count=len(proofs),
    )


async def still_applied(engine: Engine, adapter: str, evidence: Evidence, replica: str) -> bool:
    """Whether a replica gives the telling canary what the adapter gave it: within tolerance, and nearer to it than to the base."""
    (now,) = await engine.score([(adapter, evidence.canary)], replica)
    apart = _distance(now, evidence.adapted)
    return apart <= max(evidence.proof.tolerance, evidence.proof.base_noise) and apart < _distance(now, evidence.base)


def failure(proof: Proof, name: str) -> TunetrialError | None:
    """Why a proof fails: FailedPrecondition ADAPTER_CHANGES_NOTHING or ADAPTER_NOT_REPRODUCED; None when it holds."""
    if proof.answered_as:
        return None
    if proof.difference_from_base <= proof.base_noise:
        return FailedPrecondition(
            "ADAPTER_CHANGES_NOTHING",
            "adapter {name} changes nothing: its log-probabilities differ from the base's by {difference} nats, noise is {noise}",
            name=name,
            difference=proof.difference_from_base,
            noise=proof.base_noise,
        )
    if proof.difference_from_manifest is not None and proof.difference_from_manifest > proof.tolerance:
        return FailedPrecondition(
            "ADAPTER_NOT_REPRODUCED",
            "adapter {name} does not give what its manifest says: log-probabilities differ by {difference} nats, {tolerance} are allowed",
            name=name,
            difference=proof.difference_from_manifest,
            tolerance=proof.tolerance,
        )
    return None


async def _own_canaries(engine: Engine) -> tuple[Canary, ...]:
    try:
        await engine.encode((Turn("user", "?"),))
    except FailedPrecondition:
        return tuple(Canary(question, f" {answer}") for question, answer in _OWN_CANARIES)
    return tuple(Canary((Turn("user", question),), answer) for question, answer in _OWN_CANARIES)


def _distance(ones: Sequence[float], others: Sequence[float]) -> float:
    # Other counts of tokens mean another tokenizer: nothing is reproduced.
    if len(ones) != len(others):
        return math.inf
    return max((abs(one - other) for one, other in zip(ones, others, strict=True)), default=0.0)


def _canary(canary: dict[str, Any]) -> Canary:
    turns = tuple(Turn(str(turn["role"]), str(turn["content"])) for turn in canary["messages"])
    base, adapted = (canary.get(f"{who}_log_probabilities") for who in ("base", "adapter"))
    return Canary(
        turns,
        str(canary["completion"]),
        base_log_probabilities=None if base is None else _finite(base),
        adapter_log_probabilities=None if adapted is None else _finite(adapted),
    )


def _finite(values: Sequence[Any]) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a log-probability that is no number")
    return numbers
