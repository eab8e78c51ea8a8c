"""The best settings of a family by the loss on its evaluation part: tried one after the other, as Optuna's TPE sampler proposes them.

What is proposed depends on the search's seed and on what was tried before, and on nothing else; what was tried is kept. So a search that
was killed goes on as if it had not been, and with more `trials` it goes on from where it ended. Each is an ordinary training job: trained
once, whoever asks for it. The test questions have no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from flows.clients import ServiceError
from flows.connections import together
from flows.data.split import place
from flows.errors import TrialError
from flows.search_spec import RangeSpec, SearchSpec
from flows.stages.prepare import Prepared
from flows.stages.snapshot import Snapshot
from flows.stages.train import AdapterKey, rows_of, trained
from flows.stages.train import Rows as TrainingRows
from flows.stages.training_job import TrainingFailed
from flows.store import Rows, digest
from flows.training_spec import TrainingSpec
from flows.trial import Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

VERSION = 1
_RANDOM_FIRST = 5
"""So many are drawn at random before others are proposed by what came of them."""
OF_SETTINGS = ("is no number any more", "out of memory", "memory ran out")
"""Words of the trainer about failures that other settings may avoid."""
_PROPOSALS = 20
"""So often another proposal is asked for instead of settings that failed."""
# What the trainer refuses before it begins, because of the settings.
_REFUSALS = ("INVALID_ARGUMENT", "FAILED_PRECONDITION")


@dataclass(frozen=True, slots=True)
class Tried:
    """Settings that were tried, and what came of them. `evaluation_loss` is None when training failed; `error` then says why."""

    settings: Mapping[str, Any]
    evaluation_loss: float | None
    seconds: float
    trained_tokens: int = 0
    adapter: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Search:
    """All that was tried for a family, in order; `taken` is the place of the best."""

    family: str
    size: int
    seed: int
    tried: tuple[Tried, ...]
    taken: int
    wanted: int
    """Trials that the spec asks for; fewer were begun where its hours were spent."""

    @property
    def best(self) -> Tried:
        """What was taken."""
        return self.tried[self.taken]

    def plain(self) -> dict[str, Any]:
        """All of it, for reports and programs."""
        trials = [asdict(one) | {"taken": place == self.taken} for place, one in enumerate(self.tried)]
        return {"family": self.family, "size": self.size, "seed": self.seed, "wanted": self.wanted, "trials": trials}


async def search(trial: Trial, prepared: Prepared, snapshot: Snapshot | None) -> dict[str, Search]:
    """The searches of all families that arms use and whose spec asks for one. Raises TrialError when everything that was tried failed."""
    families = searched_families(trial)
    if not families:
        return {}
    trial.progress.stage("search", sum(one.trials for one in families.values()))
    found = await together(_search(trial, prepared.of_family(family), snapshot, family, spec) for family, spec in families.items())
    for one in found:
        trial.progress.say(f"search for {one.family}: {told(one.best.settings)} taken, evaluation loss {one.best.evaluation_loss:.4g}")
    trial.progress.finish("search", f"{sum(len(one.tried) for one in found)} trials")
    return {one.family: one for one in found}


def searched_families(trial: Trial) -> dict[str, SearchSpec]:
    """What is searched, by family."""
    used = sorted({arm.adapter for arm in trial.spec.arms.values() if arm.adapter is not None})
    return {family: asked for family in used if (asked := trial.spec.training[family].search) is not None}


def settings_of(trial: Trial, found: Mapping[str, Search]) -> dict[str, TrainingSpec]:
    """Families with the settings that were taken."""
    return {family: trial.spec.training[family].with_settings(one.best.settings) for family, one in found.items()}


def told(settings: Mapping[str, Any]) -> str:
    """`learning_rate 0.00021, rank 8`."""
    return ", ".join(f"{name} {f'{value:.3g}' if isinstance(value, float) else value}" for name, value in settings.items())


async def _search(trial: Trial, prepared: Prepared, snapshot: Snapshot | None, family: str, spec: SearchSpec) -> Search:
    training = trial.spec.training[family]
    key = AdapterKey(family, max(training.sizes), training.seeds[0])
    rows = rows_of(trial, prepared, snapshot, key)
    inputs = {
        "version": VERSION,
        "base": trial.base_identity(training.model),
        "rows": [digest(rows.training), digest(rows.evaluation)],
        "recipe": training.recipe(),
        "seed": key.seed,
        "search": spec.model_dump(mode="json", include={"parameters", "seed"}),
    }
    kept = Rows(trial.store, "searches", digest(inputs), batch=1)
    tried: list[Tried] = []
    while len(tried) < spec.trials and not (tried and _spent(tried) >= (spec.hours or math.inf) * 3600):
        number = str(len(tried))
        if number in kept:
            tried.append(Tried(**kept[number]))
            trial.progress.advance("search")
            continue
        settings = await anyio.to_thread.run_sync(_new_proposal, spec, tuple(tried))
        one = next((replace(one, seconds=0.0) for one in tried if one.error and one.settings == settings), None)
        if one is None:
            one = await _try(trial, training, rows, key, settings)
        else:
            trial.progress.advance("search")
        if one.error:
            trial.progress.say(f"search for {family}: {told(settings)} failed: {one.error}")
        kept.add(number, asdict(one))
        tried.append(one)
    usable = [place for place, one in enumerate(tried) if one.evaluation_loss is not None]
    if not usable:
        raise TrialError(
            f"training.{family}.search: all {len(tried)} trials failed, the first because: {tried[0].error}. Change its parameters; "
            "another search.seed tries anew"
        )
    taken = min(usable, key=lambda place: (tried[place].evaluation_loss, place))
    return Search(family, key.size, key.seed, tuple(tried), taken, spec.trials)


async def _try(trial: Trial, training: TrainingSpec, rows: TrainingRows, key: AdapterKey, settings: Mapping[str, Any]) -> Tried:
    try:
        adapter = await trained(trial, training.with_settings(settings), rows, key, "search")
    except (TrainingFailed, ServiceError) as error:
        if isinstance(error, TrainingFailed):
            # Against a full disk, a store that is away or a node that is gone no settings help.
            if not any(words in error.why for words in OF_SETTINGS):
                raise
            seconds = max(error.seconds, 0.001)
        elif error.code in _REFUSALS:
            seconds = 0.0
        else:
            raise
        trial.progress.advance("search")
        why = error.why if isinstance(error, TrainingFailed) else str(error).splitlines()[0]
        return Tried(settings, None, seconds, error=why)
    if adapter.evaluation_loss is None:
        raise TrialError(
            "the trainer told no evaluation loss of an adapter, by which a search goes: it is older than this command; update it"
        )
    return Tried(settings, adapter.evaluation_loss, adapter.training_s, adapter.trained_tokens, adapter.name)


def _spent(tried: Sequence[Tried]) -> float:
    """Seconds of training; what was proposed twice was trained once."""
    trained_once = {one.adapter: one.seconds for one in tried if one.adapter}
    return sum(trained_once.values()) + sum(one.seconds for one in tried if not one.adapter)


def _new_proposal(spec: SearchSpec, tried: Sequence[Tried]) -> dict[str, Any]:
    """Settings that did not fail before, unless hardly any others are left."""
    failed = [one.settings for one in tried if one.error]
    for attempt in range(_PROPOSALS):
        settings = propose(spec, tried, attempt)
        if settings not in failed:
            break
    return settings


def propose(spec: SearchSpec, tried: Sequence[Tried], attempt: int = 0) -> dict[str, Any]:
    """The settings to be tried next; attempts after the first are drawn at random."""
    import optuna  # noqa: PLC0415  takes a second, and few trials search

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: _distribution(values) for name, values in spec.parameters.items()}
    # Of a seed of its own each: a search that goes on draws what it would have drawn.
    seed = int(place(spec.seed, "search", str(len(tried)), *([str(attempt)] if attempt else [])) * 2**32)
    random, tpe = optuna.samplers.RandomSampler(seed=seed), optuna.samplers.TPESampler(n_startup_trials=_RANDOM_FIRST, seed=seed)
    # Of what failed TPE knows nothing, and would propose it again.
    study = optuna.create_study(sampler=random if attempt else tpe)
    for one in tried:
        state = optuna.trial.TrialState.FAIL if one.evaluation_loss is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(state=state, value=one.evaluation_loss, params=dict(one.settings), distributions=distributions)
        )
    return dict(study.ask(distributions).params)


def _distribution(values: RangeSpec | tuple[Any, ...]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: PLC0415

    if not isinstance(values, RangeSpec):
        return CategoricalDistribution(values)
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log, step=int(values.step or 1))
    return FloatDistribution(float(values.low), float(values.high), log=values.log, step=values.step)
