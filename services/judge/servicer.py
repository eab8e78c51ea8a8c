"""Wire to domain and back. The only module of this service that sees *_pb2; holds no rule of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import structlog
from tunetrial.common.v1 import common_pb2
from tunetrial.judge.v1 import judge_pb2, judge_pb2_grpc

from services.common.errors import Internal, InvalidArgument, TunetrialError
from services.common.server import to_failure
from services.judge.domain import Case, Draft, EngineName, Estimate, Judge, Judgement, Missing, Mode, Pair, Rubric, Run, Usage

_log = structlog.get_logger()

_ENGINES = {judge_pb2.ENGINE_REFERENCE: EngineName.REFERENCE, judge_pb2.ENGINE_OPENAI: EngineName.OPENAI}
_MODES = {judge_pb2.SCORE_MODE_SAMPLES: Mode.SAMPLES, judge_pb2.SCORE_MODE_TOKEN_PROBABILITIES: Mode.TOKEN_PROBABILITIES}
_ENGINE_VALUES = {name: value for value, name in _ENGINES.items()}
_MODE_VALUES = {mode: value for value, mode in _MODES.items()}
_MISSING_VALUES = {
    Missing.UNPARSED: judge_pb2.MISSING_REASON_UNPARSED,
    Missing.REFUSED: judge_pb2.MISSING_REASON_REFUSED,
    Missing.TRUNCATED: judge_pb2.MISSING_REASON_TRUNCATED,
}


class JudgeServicer(judge_pb2_grpc.JudgeServiceServicer):
    """The rpcs of the contract."""

    def __init__(self, judge: Judge, batch_in_flight: int) -> None:
        self._judge, self._batch_in_flight = judge, batch_in_flight

    async def CreateRubric(self, request: judge_pb2.CreateRubricRequest, context: Any) -> judge_pb2.CreateRubricResponse:
        """Freezes a rubric."""
        rubric, usage = await self._judge.create_rubric(to_draft(request))
        return judge_pb2.CreateRubricResponse(rubric=from_rubric(rubric), usage=from_usage(usage))

    async def GetRubric(self, request: judge_pb2.GetRubricRequest, context: Any) -> judge_pb2.GetRubricResponse:
        """One rubric."""
        return judge_pb2.GetRubricResponse(rubric=from_rubric(await self._judge.rubric(request.hash)))

    async def Judge(self, request: judge_pb2.JudgeRequest, context: Any) -> judge_pb2.JudgeResponse:
        """Scores one answer."""
        run_count = request.run_count if request.HasField("run_count") else None
        seed = request.seed if request.HasField("seed") else None
        return from_judgement(await self._judge.score(request.rubric, to_case(request), run_count, seed))

    async def BatchJudge(
        self, requests: AsyncIterator[judge_pb2.BatchJudgeRequest], context: Any
    ) -> AsyncIterator[judge_pb2.BatchJudgeResponse]:
        """Scores many answers, so many at once as the setting says; no more are read from the stream meanwhile."""
        ids: set[str] = set()
        under_way: set[asyncio.Future[judge_pb2.BatchJudgeResponse]] = set()
        reading: asyncio.Future[judge_pb2.BatchJudgeRequest | None] | None = asyncio.ensure_future(_next(requests))
        try:
            while reading is not None or under_way:
                waited: set[asyncio.Future[Any]] = {*under_way}
                if reading is not None and len(under_way) < self._batch_in_flight:
                    waited.add(reading)
                done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                for task in done & under_way:
                    under_way.discard(task)
                    yield task.result()
                if reading is not None and reading in done:
                    request = reading.result()
                    reading = None
                    if request is not None:
                        reading = asyncio.ensure_future(_next(requests))
                        under_way.add(asyncio.ensure_future(self._one(request, request.id in ids)))
                        ids.add(request.id)
        finally:
            if reading is not None:
                reading.cancel()
            for left in under_way:
                left.cancel()

    async def _one(self, request: judge_pb2.BatchJudgeRequest, repeated: bool) -> judge_pb2.BatchJudgeResponse:
        try:
            if repeated or not request.id:
                raise InvalidArgument("ID_NOT_UNIQUE", "id {id!r} is empty or came before in this stream", id=request.id, field="id")
            return judge_pb2.BatchJudgeResponse(id=request.id, judge=await self.Judge(request.judge, None))
        except TunetrialError as error:
            return judge_pb2.BatchJudgeResponse(id=request.id, failure=to_failure(error))
        except Exception as error:
            # A fault in one answer must not cost the others of the stream.
            _log.error("answer failed unexpectedly", id=request.id, exc_info=error)
            fault = Internal("INTERNAL", "judging failed unexpectedly: {kind}", kind=type(error).__name__)
            return judge_pb2.BatchJudgeResponse(id=request.id, failure=to_failure(fault))

    async def Calibrate(self, request: judge_pb2.CalibrateRequest, context: Any) -> judge_pb2.CalibrateResponse:
        """Compares judge scores with human ones."""
        pairs = [Pair(pair.judge_score, pair.human_score, pair.cluster) for pair in request.pairs]
        agreement = await self._judge.calibrate(request.rubric, pairs)
        return judge_pb2.CalibrateResponse(
            pair_count=len(pairs),
            spearman=from_estimate(agreement.spearman),
            kendall=from_estimate(agreement.kendall),
            weighted_kappa=from_estimate(agreement.weighted_kappa),
            bias=from_estimate(agreement.bias),
        )


async def _next(requests: AsyncIterator[judge_pb2.BatchJudgeRequest]) -> judge_pb2.BatchJudgeRequest | None:
    return await anext(requests, None)


def to_draft(request: judge_pb2.CreateRubricRequest) -> Draft:
    """Raises InvalidArgument for an engine or mode that this contract does not know."""
    if request.engine and request.engine not in _ENGINES:
        raise InvalidArgument("ENGINE_UNKNOWN", "no engine has number {number}", number=request.engine, field="engine")
    if request.mode and request.mode not in _MODES:
        raise InvalidArgument("MODE_UNKNOWN", "no score mode has number {number}", number=request.mode, field="mode")
    return Draft(
        criterion=request.criterion,
        description=request.description,
        steps=tuple(request.steps),
        low=request.low if request.HasField("low") else None,
        high=request.high if request.HasField("high") else None,
        engine=_ENGINES.get(request.engine),
        model=request.model,
        mode=_MODES.get(request.mode),
        temperature=request.temperature if request.HasField("temperature") else None,
        run_count=request.run_count if request.HasField("run_count") else None,
    )


def to_case(request: judge_pb2.JudgeRequest) -> Case:
    """A reference that is blank says nothing and is left out."""
    references = tuple(reference for reference in request.references if reference.strip())
    return Case(request.question, request.answer, references, tuple(request.passages))


def from_rubric(rubric: Rubric) -> judge_pb2.Rubric:
    """The rubric with its hash."""
    message = judge_pb2.Rubric(
        hash=rubric.hash,
        criterion=rubric.criterion,
        description=rubric.description,
        steps=rubric.steps,
        low=rubric.low,
        high=rubric.high,
        engine=_ENGINE_VALUES[rubric.engine],
        model=rubric.model,
        mode=_MODE_VALUES[rubric.mode] if rubric.mode else judge_pb2.SCORE_MODE_UNSPECIFIED,
        temperature=rubric.temperature,
        run_count=rubric.run_count,
    )
    message.create_time.FromDatetime(rubric.create_time)
    return message


def from_judgement(judgement: Judgement) -> judge_pb2.JudgeResponse:
    """All runs, in order."""
    return judge_pb2.JudgeResponse(runs=_from_runs(judgement.runs), metrics=judgement.metrics, usage=from_usage(judgement.usage))


def _from_runs(runs: Sequence[Run]) -> list[judge_pb2.JudgeRun]:
    return [
        judge_pb2.JudgeRun(
            score=run.score,
            reply=run.reply,
            missing=_MISSING_VALUES[run.missing] if run.missing else judge_pb2.MISSING_REASON_UNSPECIFIED,
            usage=from_usage(run.usage),
            off_scale_probability=run.off_scale_probability,
        )
        for run in runs
    ]


def from_usage(usage: Usage) -> common_pb2.Usage:
    """Cost stays unset where it is not known."""
    return common_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        latency_ms=usage.latency_ms,
        cost_usd=usage.cost_usd,
    )


def from_estimate(estimate: Estimate) -> judge_pb2.Estimate:
    """What is not defined stays unset."""
    return judge_pb2.Estimate(value=estimate.value, low=estimate.low, high=estimate.high)
