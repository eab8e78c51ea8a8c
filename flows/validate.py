"""Reads everything that a trial would read and contacts everything that it would ask, but spends nothing. Says what a run would cost."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from tunetrial.judge.v1 import judge_pb2

from flows.data.exemplars import Exemplars
from flows.data.tokens import word_spans
from flows.data_spec import is_folder
from flows.earlier_run import files_of
from flows.errors import TrialError, UserError
from flows.spec import Spec
from flows.stages.knowledge import answers_to_ask, tagged_families
from flows.stages.preferences import preferences
from flows.stages.prepare import Prepared, prepare
from flows.stages.serve import serve_base
from flows.stages.snapshot import check_reranker
from flows.training_cost import training_cost
from flows.trial import Trial, needed_services

# Model tokens to one word or mark of English text; tokenizers of large models need fewer, small vocabularies more.
_TOKENS_A_WORD = 1.3
# What one core of a laptop does with a model of 3 million parameters; larger models and GPUs are other worlds, so this is the quickstart's.
_ANSWERS_A_SECOND, _TRAINED_TOKENS_A_SECOND, _SCORES_A_SECOND = 25.0, 4000.0, 60.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run would ask for; results that are in the store already are not taken off. Tokens and time are estimates."""

    training_jobs: int
    training_tokens: int
    answers: int
    answer_tokens: int
    judgements: int
    judge_tokens: int
    minutes_on_a_laptop: float
    knowledge_answers_least: int = 0
    """Answers to find out what bases know of training questions, if they know all of them."""
    knowledge_answers_most: int = 0
    """The same, if they know none of them, or none that is kept."""
    search_jobs: int = 0
    """So many of the training jobs, at most, search for settings."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong, and whether a run would stop because of it."""

    where: str
    problem: str


async def findings(trial: Trial, *, contact: bool) -> tuple[list[Finding], Prepared | None]:
    """Every problem that can be found without spending anything; data that could be prepared come with it."""
    found = [*_files(trial)]
    prepared: Prepared | None = None
    if not found:
        try:
            prepared = await prepare(trial)
            found += _sizes(trial.spec, prepared)
            found += _worked_examples(trial.spec, prepared)
            prepared = await preferences(trial, prepared)
        except UserError as error:
            named, _, _ = str(error).partition(": ")
            found.append(_finding(named if named.startswith("training.") else "data", error))
    if contact:
        found += [finding async for finding in _services(trial, bases_readable=not any(f.where.startswith("models.") for f in found))]
    return found, prepared


def _files(trial: Trial) -> Iterator[Finding]:
    spec, resolve = trial.spec, trial.loaded.resolve
    for number, source in enumerate(spec.data.sources):
        path = resolve(source.path)
        if not path.is_file():
            yield Finding(f"data.sources.{number}.path", f"{path}: no such file")
    for folder in spec.data.corpus:
        if not resolve(folder).exists():
            yield Finding("data.corpus", f"{resolve(folder)}: no such folder")
    for name in spec.models:
        try:
            trial.base_identity(name)
        except UserError as error:
            yield _finding(f"models.{name}.base", error)
    for name, training in spec.training.items():
        try:
            if training.preferences is not None:
                files_of(training.preferences, resolve)
        except UserError as error:
            yield _finding(f"training.{name}.preferences", error)
    try:
        _ = trial.template
    except UserError as error:
        yield _finding("prompt.template", error)
    encoder = trial.loaded.encoder
    if is_folder(encoder) and not Path(encoder).is_dir():
        yield Finding("retrieval.encoder", f"{encoder}: no such folder")
        return
    try:
        _ = trial.encoder_tokens
    except UserError as error:
        yield _finding("retrieval.chunk.count", error)


def _sizes(spec: Spec, prepared: Prepared) -> Iterator[Finding]:
    clusters = prepared.counts["test_clusters"]
    fewest = math.ceil(1 - math.log2(spec.analysis.alpha))
    if clusters < fewest:
        yield Finding(
            "data.test_items",
            f"the test questions come from {clusters} clusters; an interval at {1 - spec.analysis.alpha:.0%} needs {fewest} or more",
        )
    here = {name: training for name, training in spec.training.items() if training.method != "hosted"}
    for name, training in here.items():
        smallest = min(training.sizes)
        batch = (training.search.largest("batch_size") if training.search else None) or training.batch_size
        if batch > smallest:
            yield Finding(
                f"training.{name}.batch_size",
                f"{batch:g} (16 unless set) is more than the smallest training set: {smallest} or less",
            )


def _worked_examples(spec: Spec, prepared: Prepared) -> Iterator[Finding]:
    for family in tagged_families(spec):
        settings = spec.training[family].knowledge
        if settings is not None:
            exemplars = Exemplars(prepared.pool, settings.exemplar_sets, settings.shots, spec.data.seed)
            try:
                for item in prepared.untouched:
                    exemplars.of(item)
            except UserError as error:
                yield _finding(f"training.{family}", error)


async def _services(trial: Trial, *, bases_readable: bool) -> AsyncIterator[Finding]:
    for service in needed_services(trial.spec):
        try:
            async with trial.services.use(service) as clients:
                if not await clients.serving(service):
                    yield Finding(service, "answers, but says that it is not ready to work")
            if service == "retriever" and trial.spec.retrieval.rerank:
                await check_reranker(trial.services, "retrieval.rerank")
            if service == "judge" and trial.spec.judge.engine == "openai":
                await _judge_is_configured(trial)
        except TrialError as error:
            yield _finding(service, error)
            continue
        if service == "generator" and bases_readable:
            for name in trial.spec.models:
                try:
                    await serve_base(trial, name)
                except TrialError as error:
                    yield _finding(f"models.{name}", error)


def _finding(where: str, error: TrialError) -> Finding:
    """The first line says what is wrong; what follows in a message is advice for a run."""
    said = str(error) if isinstance(error, UserError) else str(error).split("\n", 1)[0]
    return Finding(where, said.removeprefix(f"{where}: "))


async def _judge_is_configured(trial: Trial) -> None:
    """Raises ServiceError when the judge has no such engine or model. A rubric that brings its steps asks no model and costs nothing."""
    spec = trial.spec.judge
    request = judge_pb2.CreateRubricRequest(
        criterion=spec.rubric[0], engine=judge_pb2.ENGINE_OPENAI, model=spec.model, steps=["Compare the answer with the references."]
    )
    async with trial.services.use("judge") as clients:
        await clients.judge.CreateRubric(request, timeout=60)


def cost(spec: Spec, prepared: Prepared) -> Cost:
    """What a run would ask for."""
    shown = spec.retrieval.k * _mean(_shown_words(spec, prepared)) * _TOKENS_A_WORD
    question = _mean(len(word_spans(item.question)) for item in prepared.test) * _TOKENS_A_WORD
    reply = _mean(len(word_spans(item.references[0])) for item in prepared.test) * _TOKENS_A_WORD
    training = training_cost(spec.training, prepared.pairs, shown=shown, asked=question + reply, a_word=_TOKENS_A_WORD)
    jobs, trained = training.jobs, training.tokens
    contestants = spec.contestants()
    per_arm = len(prepared.test) * spec.decoding.samples
    asked = sum(per_arm * ((shown if one.rag else 0) * (1 + one.shots) + question * (1 + one.shots) + reply) for one in contestants)
    answers = per_arm * len(contestants)
    runs = (spec.judge.runs or (10 if spec.judge.mode == "samples" else 1)) if spec.judge.engine == "openai" else 1
    judgements = answers * len(spec.judge.rubric) * runs
    # A prompt of about 350 tokens of instructions around question, references and answer.
    judged = 0.0 if spec.judge.engine == "reference" else judgements * (350 + question + 2 * reply)
    least, most = answers_to_ask(spec, prepared)
    seconds = (answers + most) / _ANSWERS_A_SECOND + trained / _TRAINED_TOKENS_A_SECOND + judgements / _SCORES_A_SECOND + 15 * jobs + 60
    return Cost(
        jobs, round(trained), answers, round(asked), judgements, round(judged), round(seconds / 60, 1), least, most, training.search_jobs
    )


def _shown_words(spec: Spec, prepared: Prepared) -> Iterator[int]:
    """Words that a prompt shows for each passage, if no two share a parent."""
    if prepared.parents is None:
        yield from (len(word_spans(passage.text)) for passage in prepared.passages)
    else:
        words = {name: len(word_spans(parent.text)) for name, parent in prepared.parents.texts.items()}
        yield from (min(words[parent], spec.retrieval.chunk.shown_tokens) for parent in prepared.parent_of.values())


def _mean(counts: Iterator[int]) -> float:
    values = list(counts)
    return sum(values) / max(1, len(values))
