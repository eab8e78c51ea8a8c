"""The engine openai: real client, real HTTP, real gRPC."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from judge_endpoint import Endpoint, Reply, chat, failure
from tunetrial.judge.v1 import judge_pb2

if TYPE_CHECKING:
    from judge_endpoint import Serve, Stub

STEPS = ["Compare the answer with the references.", "Give a score."]


async def rubric(stub: Stub, **values: Any) -> str:
    fields: dict[str, Any] = {"criterion": "accuracy", "steps": STEPS, "run_count": 1}
    return (await stub.CreateRubric(judge_pb2.CreateRubricRequest(**(fields | values)))).rubric.hash


def case(rubric_hash: str, answer: str = "Paris", **values: Any) -> judge_pb2.JudgeRequest:
    return judge_pb2.JudgeRequest(
        **({"rubric": rubric_hash, "question": "Which city?", "answer": answer, "references": ["Paris"]} | values)
    )


async def status_of(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error: Any = caught.value  # has what the library asks of a call, though its types do not say so
    status = rpc_status.from_call(error)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return caught.value.code(), info.reason, dict(info.metadata) | {"message": status.message}


async def test_steps_are_written_once_greedily_and_outlive_the_service(endpoint: Endpoint, judge_of: Serve) -> None:
    endpoint.respond = lambda _body, _number: chat("1. Read the answer.\n2. Give a score.")
    request = judge_pb2.CreateRubricRequest(criterion="accuracy")
    async with judge_of() as stub:
        first, second = await asyncio.gather(stub.CreateRubric(request), stub.CreateRubric(request))
    async with judge_of() as stub:
        third = await stub.CreateRubric(request)
        looked_up = (await stub.GetRubric(judge_pb2.GetRubricRequest(hash=third.rubric.hash))).rubric
    assert len(endpoint.requests) == 1
    assert endpoint.requests[0]["temperature"] == 0
    assert first.rubric == second.rubric == third.rubric == looked_up
    assert list(third.rubric.steps) == ["Read the answer.", "Give a score."]
    assert (third.rubric.run_count, third.rubric.temperature, third.rubric.model) == (10, 1.0, "judge-model")
    assert sorted([first.usage.prompt_tokens, second.usage.prompt_tokens]) == [0, 100]
    assert third.usage.cost_usd == 0
    assert third.usage.HasField("cost_usd")


@pytest.mark.parametrize("reply", [chat("I would read it and then decide."), chat("1. Read", finish="length"), chat(None, refusal="No.")])
async def test_a_reply_without_steps_freezes_nothing(endpoint: Endpoint, judge_of: Serve, reply: Reply) -> None:
    endpoint.respond = lambda _body, _number: reply
    async with judge_of() as stub:
        code, reason, _ = await status_of(stub.CreateRubric(judge_pb2.CreateRubricRequest(criterion="accuracy")))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "STEPS_UNPARSED")


async def test_every_run_is_kept_in_order_with_seed_reply_reason_and_cost(endpoint: Endpoint, judge_of: Serve) -> None:
    replies = [
        chat("4"),
        chat("It is good."),
        chat(None, refusal="I will not."),
        chat("3", finish="content_filter"),
        chat("The answer", finish="length"),
        chat("4", finish="length"),
        chat("9"),
        chat("Score: 2/5"),
        chat(None),
    ]
    endpoint.respond = lambda body, _number: replies[body["seed"] - 40]
    price = {"judge-model": {"input_per_million": 2.0, "output_per_million": 10.0}}
    async with judge_of(openai_prices=price) as stub:
        response = await stub.Judge(case(await rubric(stub), run_count=len(replies), seed=40))
    assert [run.score if run.HasField("score") else None for run in response.runs] == [4, None, None, None, None, None, None, 2, None]
    names = [judge_pb2.MissingReason.Name(run.missing).removeprefix("MISSING_REASON_") for run in response.runs]
    assert names == ["UNSPECIFIED", "UNPARSED", "REFUSED", "REFUSED", "TRUNCATED", "TRUNCATED", "UNPARSED", "UNSPECIFIED", "UNPARSED"]
    assert [run.reply for run in response.runs] == ["4", "It is good.", "I will not.", "3", "The answer", "4", "9", "Score: 2/5", ""]
    assert response.usage.prompt_tokens == 900
    assert response.usage.cost_usd == pytest.approx(9 * (100 * 2 + 2 * 10) / 1e6)
    assert {body["temperature"] for body in endpoint.requests} == {1.0}


async def test_without_a_price_the_cost_is_unset(judge_of: Serve) -> None:
    async with judge_of() as stub:
        usage = (await stub.Judge(case(await rubric(stub)))).usage
    assert usage.prompt_tokens == 100
    assert not usage.HasField("cost_usd")


async def test_the_prompt_begins_with_what_all_arms_share(endpoint: Endpoint, judge_of: Serve) -> None:
    async with judge_of() as stub:
        made = await rubric(stub)
        for answer in ("Paris", "Lyon {question} <b>"):
            await stub.Judge(case(made, answer, passages=["A passage about towns."]))
    one, other = (body["messages"][0]["content"] for body in endpoint.requests)
    shared = one[: next(place for place, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)]
    for part in (*STEPS, "Which city?", "<reference>\nParis", "A passage about towns."):
        assert part in shared
    assert "Lyon {question} <b>" in other


async def test_an_identical_answer_is_judged_once_and_paid_once(endpoint: Endpoint, judge_of: Serve) -> None:
    async with judge_of() as stub:
        made = await rubric(stub)
        responses = await asyncio.gather(*(stub.Judge(case(made, run_count=3)) for _ in range(4)))
        more = await stub.Judge(case(made, run_count=5))
        await stub.Judge(case(made, run_count=1, seed=1))
    assert len(endpoint.requests) == 3 + 2 + 1
    assert sum(response.usage.prompt_tokens for response in responses) == 300
    assert [run.usage.prompt_tokens for run in more.runs] == [0, 0, 0, 100, 100]
    assert all(run.score == 4 for run in more.runs)


POSITIONS: list[tuple[str, list[tuple[str, float]]]] = [
    ("Score", [("Score", 0.9), ("4", 0.05)]),
    (":", [(":", 0.99)]),
    (" 4", [(" 4", 0.4), ("4", 0.1), (" 5", 0.3), (" very", 0.1), (" 9", 0.05)]),
    ("<end>", [("<end>", 0.99)]),
]


async def test_token_probabilities_are_read_where_the_score_is_written(endpoint: Endpoint, judge_of: Serve) -> None:
    endpoint.respond = lambda _body, _number: chat("Score: 4", positions=POSITIONS)
    async with judge_of() as stub:
        run = (await stub.Judge(case(await rubric(stub, mode=judge_pb2.SCORE_MODE_TOKEN_PROBABILITIES)))).runs[0]
    assert run.score == pytest.approx((0.5 * 4 + 0.3 * 5) / 0.8)
    assert run.off_scale_probability == pytest.approx(0.2)
    body = endpoint.requests[0]
    assert (body["logprobs"], body["top_logprobs"], body["temperature"]) == (True, 20, 0)


@pytest.mark.parametrize(
    "reply",
    [
        chat("4"),
        chat("4", positions=[]),
        chat("4", positions=[("4", [])]),
        chat("4", positions=[("five", [("five", 0.9)])]),
        failure(400, "top_logprobs must be at most 5"),
    ],
)
async def test_without_log_probabilities_there_is_no_score_of_another_kind(endpoint: Endpoint, judge_of: Serve, reply: Reply) -> None:
    endpoint.respond = lambda _body, _number: reply
    async with judge_of() as stub:
        made = await rubric(stub, mode=judge_pb2.SCORE_MODE_TOKEN_PROBABILITIES)
        code, reason, _ = await status_of(stub.Judge(case(made)))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "LOG_PROBABILITIES_UNAVAILABLE")


async def test_a_reply_off_the_scale_is_missing_in_mode_token_probabilities_too(endpoint: Endpoint, judge_of: Serve) -> None:
    endpoint.respond = lambda _body, _number: chat("9", positions=[("9", [("9", 0.6), ("4", 0.3)])])
    async with judge_of() as stub:
        run = (await stub.Judge(case(await rubric(stub, mode=judge_pb2.SCORE_MODE_TOKEN_PROBABILITIES)))).runs[0]
    assert not run.HasField("score")
    assert run.missing == judge_pb2.MISSING_REASON_UNPARSED


@pytest.mark.parametrize("reply", [failure(429, "slow down", **{"retry-after-ms": "10"}), failure(500, "oops", **{"retry-after-ms": "10"})])
async def test_a_passing_failure_is_retried(endpoint: Endpoint, judge_of: Serve, reply: Reply) -> None:
    endpoint.respond = lambda _body, number: reply if number == 0 else chat("3")
    async with judge_of() as stub:
        response = await stub.Judge(case(await rubric(stub)))
    assert [run.score for run in response.runs] == [3]
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize(
    ("reply", "code", "reason"),
    [
        (failure(500, "oops"), grpc.StatusCode.UNAVAILABLE, "JUDGE_UNAVAILABLE"),
        (Reply(b"<html>hello</html>", headers={"content-type": "text/html"}), grpc.StatusCode.UNAVAILABLE, "JUDGE_UNAVAILABLE"),
        (Reply(b'{"choices": ['), grpc.StatusCode.UNAVAILABLE, "JUDGE_UNAVAILABLE"),
        (Reply(b'{"choices": []}'), grpc.StatusCode.UNAVAILABLE, "JUDGE_UNAVAILABLE"),
        (Reply(b'{"choices": [{}]}'), grpc.StatusCode.UNAVAILABLE, "JUDGE_UNAVAILABLE"),
        (Reply(b"[]"), grpc.StatusCode.UNAVAILABLE, "JUDGE_UNAVAILABLE"),
        (Reply(b"null"), grpc.StatusCode.UNAVAILABLE, "JUDGE_UNAVAILABLE"),
        (failure(401, "bad key"), grpc.StatusCode.FAILED_PRECONDITION, "JUDGE_CREDENTIALS"),
        (failure(404, "The model `x` does not exist.", "model_not_found"), grpc.StatusCode.FAILED_PRECONDITION, "JUDGE_MODEL_UNKNOWN"),
        (Reply(b"nothing here", 404), grpc.StatusCode.FAILED_PRECONDITION, "JUDGE_ENDPOINT_INVALID"),
        (failure(400, "temperature is not supported"), grpc.StatusCode.FAILED_PRECONDITION, "JUDGE_REQUEST_REJECTED"),
        (failure(400, "too long", "context_length_exceeded"), grpc.StatusCode.INVALID_ARGUMENT, "PROMPT_TOO_LONG"),
    ],
)
async def test_each_way_to_fail_has_its_own_status(
    endpoint: Endpoint, judge_of: Serve, reply: Reply, code: grpc.StatusCode, reason: str
) -> None:
    endpoint.respond = lambda _body, _number: reply
    async with judge_of(openai_max_retries=0, openai_api_key="secret-key") as stub:
        made = await rubric(stub)
        found = await status_of(stub.Judge(case(made)))
    assert found[:2] == (code, reason)
    assert "secret-key" not in str(found)


async def test_a_rate_limit_says_when_to_come_back(endpoint: Endpoint, judge_of: Serve) -> None:
    endpoint.respond = lambda _body, _number: failure(429, "slow down", **{"retry-after": "7"})
    async with judge_of(openai_max_retries=0) as stub:
        code, reason, metadata = await status_of(stub.Judge(case(await rubric(stub))))
    assert (code, reason, metadata["retry_after_s"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "JUDGE_RATE_LIMITED", "7.0")


async def test_a_filtered_prompt_is_a_refusal_not_a_failure(endpoint: Endpoint, judge_of: Serve) -> None:
    endpoint.respond = lambda _body, _number: failure(400, "filtered", "content_filter")
    async with judge_of() as stub:
        run = (await stub.Judge(case(await rubric(stub)))).runs[0]
    assert run.missing == judge_pb2.MISSING_REASON_REFUSED
    assert not run.usage.HasField("cost_usd")


async def test_an_endpoint_that_is_away_is_unavailable(judge_of: Serve) -> None:
    async with judge_of(openai_base_url="http://127.0.0.1:9/v1", openai_max_retries=0) as stub:
        code, reason, metadata = await status_of(stub.Judge(case(await rubric(stub))))
    assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "JUDGE_UNAVAILABLE")
    assert "127.0.0.1:9" in metadata["message"]


async def test_an_endpoint_that_hangs_is_unavailable(endpoint: Endpoint, judge_of: Serve) -> None:
    release = threading.Event()
    endpoint.respond = lambda _body, _number: Reply(b"", hold=release)
    async with judge_of(openai_timeout_s=0.2, openai_max_retries=0) as stub:
        found = await status_of(stub.Judge(case(await rubric(stub))))
    release.set()
    assert found[:2] == (grpc.StatusCode.UNAVAILABLE, "JUDGE_UNAVAILABLE")


async def test_a_call_repeated_after_a_failed_run_asks_only_for_what_is_missing(endpoint: Endpoint, judge_of: Serve) -> None:
    def respond(body: dict[str, Any], number: int) -> Reply:
        return failure(500, "oops") if body["seed"] == 2 and number == 2 else chat("5")

    endpoint.respond = respond
    async with judge_of(openai_max_retries=0, openai_concurrency=1) as stub:
        made = await rubric(stub)
        assert (await status_of(stub.Judge(case(made, run_count=3, seed=0))))[1] == "JUDGE_UNAVAILABLE"
        response = await stub.Judge(case(made, run_count=3, seed=0))
    assert [run.score for run in response.runs] == [5, 5, 5]
    assert [body["seed"] for body in endpoint.requests] == [0, 1, 2, 2]


async def test_a_cancelled_call_frees_its_slot_at_once(endpoint: Endpoint, judge_of: Serve) -> None:
    release = threading.Event()
    endpoint.respond = lambda body, _number: Reply(b"", hold=release) if body["seed"] == 1 else chat("5")
    async with judge_of(openai_concurrency=1) as stub:
        made = await rubric(stub)
        hanging = asyncio.ensure_future(stub.Judge(case(made, seed=1)))
        assert await endpoint.has_in_flight(1)
        hanging.cancel()
        assert (await asyncio.wait_for(stub.Judge(case(made, seed=2)), 10)).runs[0].score == 5
    release.set()


async def test_requests_in_flight_stay_within_the_limit(endpoint: Endpoint, judge_of: Serve) -> None:
    gate = threading.Event()
    reply = chat("4")
    endpoint.respond = lambda _body, _number: Reply(reply.body, hold=gate)
    async with judge_of(openai_concurrency=3) as stub:
        call = asyncio.ensure_future(stub.Judge(case(await rubric(stub), run_count=10)))
        assert await endpoint.has_in_flight(3)
        gate.set()
        assert len((await call).runs) == 10
    assert endpoint.most_in_flight == 3


async def test_a_stream_matches_by_id_and_keeps_failures_to_their_answer(endpoint: Endpoint, judge_of: Serve) -> None:
    endpoint.respond = lambda body, _number: failure(400, "no") if "BREAK" in body["messages"][0]["content"] else chat("4")
    async with judge_of() as stub:
        made = await rubric(stub)
        answers = {"a": "Paris", "b": "BREAK", "c": "Lyon"}
        items = [judge_pb2.BatchJudgeRequest(id=name, judge=case(made, answer)) for name, answer in answers.items()]
        items += [judge_pb2.BatchJudgeRequest(id="d", judge=case("0" * 64)), judge_pb2.BatchJudgeRequest(judge=case(made))]
        found = {response.id: response async for response in stub.BatchJudge(iter(items))}
        again = [response async for response in stub.BatchJudge(iter([items[0], items[0]]))]
    assert [found[name].WhichOneof("result") for name in "abcd"] == ["judge", "failure", "judge", "failure"]
    assert [found[name].failure.reason for name in ("b", "d", "")] == ["JUDGE_REQUEST_REJECTED", "RUBRIC_NOT_FOUND", "ID_NOT_UNIQUE"]
    assert sorted(str(response.WhichOneof("result")) for response in again) == ["failure", "judge"]


async def test_a_stream_has_no_more_under_way_than_its_limit(endpoint: Endpoint, judge_of: Serve) -> None:
    gate = threading.Event()
    reply = chat("4")
    endpoint.respond = lambda _body, _number: Reply(reply.body, hold=gate)
    async with judge_of(batch_in_flight=2) as stub:
        made = await rubric(stub)
        items = [judge_pb2.BatchJudgeRequest(id=str(number), judge=case(made, f"answer {number}")) for number in range(7)]

        async def ids_of_all() -> set[str]:
            return {response.id async for response in stub.BatchJudge(iter(items))}

        ids = asyncio.ensure_future(ids_of_all())
        assert await endpoint.has_in_flight(2)
        gate.set()
        assert await ids == {str(number) for number in range(7)}
    assert endpoint.most_in_flight == 2


async def test_the_key_comes_from_its_file_and_the_clients_own_variables_do_not_count(
    endpoint: Endpoint, judge_of: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from-elsewhere")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    (tmp_path / "key").write_text("from-the-file\n")
    async with judge_of(openai_api_key_file=tmp_path / "key") as stub:
        await stub.Judge(case(await rubric(stub)))
    async with judge_of() as stub:
        await stub.Judge(case(await rubric(stub)))
    assert endpoint.keys == ["Bearer from-the-file", "Bearer none"]


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"openai_api_key": "a", "openai_api_key_file": "b"}, "not both"),
        ({"openai_base_url": ""}, "TUNETRIAL_OPENAI_BASE_URL"),
        ({"openai_prices": {"m": {"input_per_million": -1, "output_per_million": 0}}}, "TUNETRIAL_OPENAI_PRICES"),
    ],
)
async def test_settings_that_cannot_work_are_refused_at_start(judge_of: Serve, change: dict[str, object], advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        await judge_of(**change).__aenter__()
