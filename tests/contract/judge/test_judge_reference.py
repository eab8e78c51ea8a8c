"""The engine reference with its real encoder, and the judge as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from tunetrial.judge.v1 import judge_pb2, judge_pb2_grpc

if TYPE_CHECKING:
    from judge_endpoint import Stub

ROOT = Path(__file__).parents[3]


async def rubric(stub: Stub, criterion: str = "accuracy") -> judge_pb2.Rubric:
    return (await stub.CreateRubric(judge_pb2.CreateRubricRequest(criterion=criterion))).rubric


async def reason_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error: Any = caught.value  # has what the library asks of a call, though its types do not say so
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return caught.value.code(), info.reason


async def test_the_rule_is_frozen_by_name_with_one_run_and_nothing_sampled(reference_judge: Stub) -> None:
    made = await rubric(reference_judge)
    assert (made.engine, made.model, made.run_count, list(made.steps)) == (judge_pb2.ENGINE_REFERENCE, "reference/v1", 1, [])
    assert not made.HasField("temperature")
    assert made.description
    assert made.hash == (await rubric(reference_judge)).hash != (await rubric(reference_judge, "completeness")).hash


async def test_a_paraphrase_is_told_from_another_statement_by_its_embedding(reference_judge: Stub) -> None:
    made = await rubric(reference_judge, "completeness")
    reference = "Human annotators judged the fluency of every system's output."

    async def score(answer: str) -> tuple[float, float]:
        response = await reference_judge.Judge(judge_pb2.JudgeRequest(rubric=made.hash, answer=answer, references=[reference]))
        return response.runs[0].score, response.metrics["embedding_similarity"]

    paraphrase, other = await score("People rated how fluent the systems' outputs were."), await score("They used a larger batch on a GPU.")
    assert paraphrase[1] > 0.5 > other[1]
    assert paraphrase[0] > other[0] == 1


async def test_all_metrics_come_with_the_score_and_it_is_free(reference_judge: Stub) -> None:
    made = await rubric(reference_judge)
    response = await reference_judge.Judge(judge_pb2.JudgeRequest(rubric=made.hash, answer="It is Paris.", references=["Paris", " "]))
    assert set(response.metrics) == {
        "exact_match",
        "token_f1",
        "token_precision",
        "token_recall",
        "containment",
        "containment_in_reference",
        "embedding_similarity",
    }
    assert response.metrics["token_f1"] == pytest.approx(0.5)
    assert (len(response.runs), response.runs[0].score, response.runs[0].reply) == (1, 5.0, "")
    assert response.usage.HasField("cost_usd")
    assert response.usage.cost_usd == 0


async def test_what_the_rule_cannot_do_is_refused_by_name(reference_judge: Stub) -> None:
    made = (await rubric(reference_judge)).hash
    precondition, argument = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT
    create, judge = reference_judge.CreateRubric, reference_judge.Judge
    polite = judge_pb2.CreateRubricRequest(criterion="politeness", description="How polite it is.")
    assert await reason_of(create(polite)) == (precondition, "CRITERION_NOT_SUPPORTED")
    hosted = judge_pb2.CreateRubricRequest(criterion="accuracy", engine=judge_pb2.ENGINE_OPENAI)
    assert await reason_of(create(hosted)) == (precondition, "ENGINE_NOT_CONFIGURED")
    ten = judge_pb2.CreateRubricRequest(criterion="accuracy", high=10)
    assert await reason_of(create(ten)) == (argument, "SCALE_INVALID")
    assert await reason_of(judge(judge_pb2.JudgeRequest(rubric=made, references=["x"], run_count=2))) == (argument, "RUN_COUNT_INVALID")
    assert await reason_of(judge(judge_pb2.JudgeRequest(rubric=made, references=[" "]))) == (argument, "REFERENCES_MISSING")
    assert await reason_of(judge(judge_pb2.JudgeRequest(rubric="x"))) == (grpc.StatusCode.NOT_FOUND, "RUBRIC_NOT_FOUND")


async def test_a_stream_longer_than_its_limit_comes_back_whole(reference_judge: Stub) -> None:
    made = (await rubric(reference_judge)).hash
    items = [
        judge_pb2.BatchJudgeRequest(
            id=str(number), judge=judge_pb2.JudgeRequest(rubric=made, answer=f"{number % 5} towns", references=["3 towns"])
        )
        for number in range(40)
    ]
    found = {response.id: response.judge.runs[0].score async for response in reference_judge.BatchJudge(iter(items))}
    assert found == {str(number): 5.0 if number % 5 == 3 else 1.0 for number in range(40)}


async def test_calibration_comes_with_intervals_and_asks_for_ten_labels(reference_judge: Stub) -> None:
    made = (await rubric(reference_judge)).hash
    pairs = [judge_pb2.CalibrationPair(judge_score=1 + number % 5, human_score=1 + (number + number // 9) % 5) for number in range(30)]
    response = await reference_judge.Calibrate(judge_pb2.CalibrateRequest(rubric=made, pairs=pairs))
    assert response.pair_count == 30
    for estimate in (response.spearman, response.kendall, response.weighted_kappa, response.bias):
        assert estimate.low <= estimate.value <= estimate.high
    constant = [judge_pb2.CalibrationPair(judge_score=3, human_score=pair.human_score) for pair in pairs]
    undefined = await reference_judge.Calibrate(judge_pb2.CalibrateRequest(rubric=made, pairs=constant))
    assert not undefined.spearman.HasField("value")
    few = reference_judge.Calibrate(judge_pb2.CalibrateRequest(rubric=made, pairs=pairs[:9]))
    assert await reason_of(few) == (grpc.StatusCode.INVALID_ARGUMENT, "LABELS_TOO_FEW")


async def test_the_process_opens_its_port_serves_when_ready_and_drains_on_sigterm(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TUNETRIAL_")} | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'protos'}",
        "OMP_NUM_THREADS": "1",
        "TUNETRIAL_PORT": "0",
        "TUNETRIAL_PORT_FILE": str(tmp_path / "port"),
        "TUNETRIAL_DATA_DIR": str(tmp_path / "data"),
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.judge", cwd=ROOT, env=environment)
    try:
        while not (tmp_path / "port").exists():
            assert process.returncode is None
            await asyncio.sleep(0.05)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{(tmp_path / 'port').read_text()}") as channel:
            request = health_pb2.HealthCheckRequest(service="tunetrial.judge.v1.JudgeService")
            health: Any = health_pb2_grpc.HealthStub(channel)  # its types lack Watch
            async for state in health.Watch(request):
                if state.status == health_pb2.HealthCheckResponse.SERVING:
                    break
            stub: Any = judge_pb2_grpc.JudgeServiceStub(channel)
            made = await rubric(stub)
            response = await stub.Judge(judge_pb2.JudgeRequest(rubric=made.hash, answer="Paris", references=["Paris"]))
        assert response.runs[0].score == 5
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
