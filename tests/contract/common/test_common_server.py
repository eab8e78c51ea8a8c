"""The server that all services share, on a free port, with a servicer that does what a test needs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from tunetrial.judge.v1 import judge_pb2, judge_pb2_grpc

from services.common import errors
from services.common.security import Tokens, allowed_path
from services.common.server import Service, start
from services.common.settings import ServerSettings

NAME = "tunetrial.judge.v1.JudgeService"


class Scripted(judge_pb2_grpc.JudgeServiceServicer):
    """Does what the hash of the rubric asked for says."""

    async def GetRubric(self, request: judge_pb2.GetRubricRequest, context: Any) -> judge_pb2.GetRubricResponse:  # noqa: N802
        match request.hash:
            case "missing":
                raise errors.NotFound("RUBRIC_NOT_FOUND", "no rubric {rubric}", rubric="missing")
            case "field":
                raise errors.InvalidArgument("HASH_INVALID", "a hash has 64 digits", field="hash")
            case "busy":
                raise errors.ResourceExhausted("QUEUE_FULL", "come back later", retry_after_s=2.5)
            case "broken":
                raise KeyError("a secret detail")
            case "slow":
                await asyncio.sleep(30)
        return judge_pb2.GetRubricResponse()

    async def BatchJudge(  # noqa: N802
        self, request_iterator: AsyncIterator[judge_pb2.BatchJudgeRequest], context: Any
    ) -> AsyncIterator[judge_pb2.BatchJudgeResponse]:
        async for request in request_iterator:
            if request.id == "broken":
                raise errors.Unavailable("JUDGE_UNAVAILABLE", "gone")
            yield judge_pb2.BatchJudgeResponse(id=request.id)


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[int]:
    service = Service(
        NAME, lambda server: judge_pb2_grpc.add_JudgeServiceServicer_to_server(Scripted(), server), admin_rpcs=("CreateRubric",)
    )
    server, port, _ = await start(service, ServerSettings(**settings))
    try:
        yield port
    finally:
        await server.stop(0)


async def failure(port: int, rubric: str, **call: Any) -> grpc.aio.AioRpcError:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await judge_pb2_grpc.JudgeServiceStub(channel).GetRubric(judge_pb2.GetRubricRequest(hash=rubric), **call)
        return caught.value


def detail(error: grpc.aio.AioRpcError, kind: Any) -> Any:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    found = kind()
    assert any(entry.Unpack(found) for entry in status.details)
    return found


async def test_a_domain_error_becomes_its_status_with_reason_and_metadata() -> None:
    async with running() as port:
        error = await failure(port, "missing")
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no rubric missing")
    info = detail(error, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == ("RUBRIC_NOT_FOUND", "tunetrial", {"rubric": "missing"})


async def test_a_bad_field_and_a_time_to_come_back_are_details_of_their_own() -> None:
    async with running() as port:
        field, busy = await failure(port, "field"), await failure(port, "busy")
    assert detail(field, error_details_pb2.BadRequest).field_violations[0].field == "hash"
    assert detail(busy, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 2500


async def test_an_unexpected_failure_tells_the_caller_no_detail() -> None:
    async with running() as port:
        error = await failure(port, "broken")
    assert error.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in str(error.details())


async def test_a_call_may_not_take_longer_than_the_setting() -> None:
    async with running(max_call_s=0.2) as port:
        error = await failure(port, "slow")
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert detail(error, error_details_pb2.ErrorInfo).reason == "CALL_TOO_LONG"


async def test_a_stream_that_fails_half_way_gives_what_it_had_and_then_its_status() -> None:
    async def requests() -> AsyncIterator[judge_pb2.BatchJudgeRequest]:
        for name in ("a", "b", "broken"):
            yield judge_pb2.BatchJudgeRequest(id=name)

    got = []
    async with running() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for response in judge_pb2_grpc.JudgeServiceStub(channel).BatchJudge(requests()):
                got.append(response.id)
    assert got == ["a", "b"]
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_tokens_open_the_door_and_roles_the_inner_one(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("# callers\nuser-token use\nadmin-token admin\n")
    async with running(token_file=tmp_path / "tokens") as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        judge = judge_pb2_grpc.JudgeServiceStub(channel)

        async def code(rpc: Any, request: Any, *metadata: tuple[str, str]) -> grpc.StatusCode:
            try:
                await rpc(request, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return grpc.StatusCode.OK

        get, create = judge_pb2.GetRubricRequest(hash="x"), judge_pb2.CreateRubricRequest()
        assert await code(judge.GetRubric, get) == grpc.StatusCode.UNAUTHENTICATED
        assert await code(judge.GetRubric, get, ("authorization", "Bearer wrong")) == grpc.StatusCode.UNAUTHENTICATED
        assert await code(judge.GetRubric, get, ("authorization", "Bearer user-token")) == grpc.StatusCode.OK
        assert await code(judge.CreateRubric, create, ("authorization", "Bearer user-token")) == grpc.StatusCode.PERMISSION_DENIED
        # The servicer has no such rpc, but the door let the call through.
        assert await code(judge.CreateRubric, create, ("authorization", "Bearer admin-token")) not in (
            grpc.StatusCode.PERMISSION_DENIED,
            grpc.StatusCode.UNAUTHENTICATED,
        )
        # Probes have no token.
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest(service=""))).status is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize("line", ["token", "token root", "token use more"])
def test_a_bad_token_file_names_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "tokens").write_text(f"good admin\n{line}\n")
    with pytest.raises(ValueError, match=r"tokens:2"):
        Tokens.read(tmp_path / "tokens")


async def test_tools_can_ask_what_is_served() -> None:
    async with running() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        response = await call.read()
    assert NAME in [service.name for service in response.list_services_response.service]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("one", "two"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", f"{name}.key", "-out", f"{name}.crt", *subject)
    return folder


async def test_a_new_certificate_is_used_without_a_restart(certificates: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def install(name: str) -> None:
        certificate.write_bytes((certificates / f"{name}.crt").read_bytes())
        key.write_bytes((certificates / f"{name}.key").read_bytes())

    async def answers(port: int, ca: str) -> bool:
        credentials = grpc.ssl_channel_credentials((certificates / f"{ca}.crt").read_bytes())
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
            try:
                await judge_pb2_grpc.JudgeServiceStub(channel).GetRubric(judge_pb2.GetRubricRequest(hash="x"), timeout=5)
            except grpc.aio.AioRpcError:
                return False
            return True

    install("one")
    async with running(tls_certificate=certificate, tls_key=key) as port:
        assert (await answers(port, "one"), await answers(port, "two")) == (True, False)
        install("two")
        assert (await answers(port, "one"), await answers(port, "two")) == (False, True)


async def test_mutual_tls_turns_away_who_has_no_certificate(certificates: Path) -> None:
    crt, key = certificates / "one.crt", certificates / "one.key"
    async with running(tls_certificate=crt, tls_key=key, tls_client_ca=crt) as port:
        for pair, expected in (((None, None), False), ((key.read_bytes(), crt.read_bytes()), True)):
            credentials = grpc.ssl_channel_credentials(crt.read_bytes(), *pair)
            async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
                try:
                    await judge_pb2_grpc.JudgeServiceStub(channel).GetRubric(judge_pb2.GetRubricRequest(hash="x"), timeout=5)
                    answered = True
                except grpc.aio.AioRpcError:
                    answered = False
            assert answered is expected


@pytest.mark.parametrize("uri", ["/etc/passwd", "s3://bucket/key", "{root}/../outside", "{root}/link", "file:///etc/passwd", ""])
def test_a_uri_outside_the_roots_is_refused(tmp_path: Path, uri: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to("/etc")
    with pytest.raises(errors.InvalidArgument) as caught:
        allowed_path(uri.format(root=root), str(root))
    assert caught.value.reason == "URI_NOT_ALLOWED"


def test_a_uri_inside_a_root_is_a_path(tmp_path: Path) -> None:
    assert allowed_path(f"file://{tmp_path}/a%20b", f"/nowhere:{tmp_path}") == tmp_path.resolve() / "a b"


PROCESS = """
import asyncio, sys
from pathlib import Path
from services.common.server import Service, serve
from services.common.settings import ServerSettings
from tunetrial.judge.v1 import judge_pb2, judge_pb2_grpc

class Slow(judge_pb2_grpc.JudgeServiceServicer):
    async def GetRubric(self, request, context):
        Path(sys.argv[1], "called").touch()
        await asyncio.sleep(float(request.hash))
        return judge_pb2.GetRubricResponse()

async def prepare():
    while not Path(sys.argv[1], "prepared").exists():
        await asyncio.sleep(0.02)

add = lambda server: judge_pb2_grpc.add_JudgeServiceServicer_to_server(Slow(), server)
asyncio.run(serve(Service("tunetrial.judge.v1.JudgeService", add), ServerSettings(), prepare))
"""


async def _process(tmp_path: Path, **settings: str) -> tuple[asyncio.subprocess.Process, int]:
    port_file = tmp_path / "port"
    own = {"TUNETRIAL_PORT_FILE": str(port_file), **{f"TUNETRIAL_{name.upper()}": value for name, value in settings.items()}}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROCESS, str(tmp_path)),
        env={**os.environ, **own},
        stdin=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    await _made(port_file)
    return process, int(port_file.read_text())


async def _made(file: Path) -> None:
    async with asyncio.timeout(120):
        while not file.exists():  # noqa: ASYNC110, ASYNC240  another process makes it
            await asyncio.sleep(0.02)


async def test_sigterm_lets_running_calls_finish_and_health_says_when_it_serves(tmp_path: Path) -> None:
    process, port = await _process(tmp_path)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=NAME))  # type: ignore[attr-defined]
        seen = []
        async for response in watch:
            seen.append(response.status)
            (tmp_path / "prepared").touch()
            if response.status == health_pb2.HealthCheckResponse.SERVING:
                break
        assert seen[0] != health_pb2.HealthCheckResponse.SERVING
        call = judge_pb2_grpc.JudgeServiceStub(channel).GetRubric(judge_pb2.GetRubricRequest(hash="1"))
        await _made(tmp_path / "called")
        watch.cancel()
        process.send_signal(signal.SIGTERM)
        await call
        async with asyncio.timeout(60):
            assert await process.wait() == 0


async def test_a_service_ends_when_its_parents_pipe_does(tmp_path: Path) -> None:
    (tmp_path / "prepared").touch()
    process, _ = await _process(tmp_path, stop_with_stdin="true")
    assert process.stdin is not None
    process.stdin.close()
    async with asyncio.timeout(60):
        assert await process.wait() == 0
