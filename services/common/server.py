"""A gRPC server as every service runs it: health, reflection, interceptors, credentials, drain. Knows no service.

Errors of the domain become statuses here and nowhere else.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from tunetrial.common.v1 import common_pb2

from services.common import errors, telemetry
from services.common.security import Tokens, server_credentials
from services.common.settings import ServerSettings

_log = structlog.get_logger()

_CODES: dict[type[errors.TunetrialError], int] = {
    errors.InvalidArgument: code_pb2.INVALID_ARGUMENT,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.AlreadyExists: code_pb2.ALREADY_EXISTS,
    errors.FailedPrecondition: code_pb2.FAILED_PRECONDITION,
    errors.Aborted: code_pb2.ABORTED,
    errors.ResourceExhausted: code_pb2.RESOURCE_EXHAUSTED,
    errors.Unavailable: code_pb2.UNAVAILABLE,
    errors.DeadlineExceeded: code_pb2.DEADLINE_EXCEEDED,
    errors.Unauthenticated: code_pb2.UNAUTHENTICATED,
    errors.PermissionDenied: code_pb2.PERMISSION_DENIED,
    errors.Unimplemented: code_pb2.UNIMPLEMENTED,
    errors.Internal: code_pb2.INTERNAL,
}

# Standard services answer without a token: probes and tools have none.
_OPEN = ("/grpc.health.", "/grpc.reflection.")


def code(error: errors.TunetrialError) -> int:
    """Canonical gRPC status code of a domain error."""
    return next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)


def to_status(error: errors.TunetrialError) -> status_pb2.Status:
    """The rich status of a domain error: ErrorInfo, and BadRequest or RetryInfo where the metadata name a field or a time."""
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=error.reason, domain="tunetrial", metadata=error.metadata)]
    if "field" in error.metadata:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.metadata["field"], description=error.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if "retry_after_s" in error.metadata:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(float(error.metadata["retry_after_s"]) * 1000))
        details.append(retry)
    packed = []
    for detail in details:
        wrapped = any_pb2.Any()
        wrapped.Pack(detail)
        packed.append(wrapped)
    return status_pb2.Status(code=code(error), message=error.message, details=packed)


def to_failure(error: errors.TunetrialError) -> common_pb2.Failure:
    """A domain error as the failure of one call among many."""
    return common_pb2.Failure(code=code(error), reason=error.reason, message=error.message, metadata=error.metadata)


@dataclass(frozen=True, slots=True)
class _Interceptor(grpc.aio.ServerInterceptor):
    """Around every call: token, longest duration, errors to statuses, metrics, a log line when something broke."""

    tokens: Tokens | None
    admin_methods: frozenset[str]
    max_call_s: float
    meter: telemetry.CallMeter

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        method: str = details.method
        if handler is None or method.startswith(_OPEN):
            return handler
        header = next((str(value) for key, value in details.invocation_metadata or () if key == "authorization"), None)

        async def unary(request: Any, context: Any) -> Any:
            call = handler.stream_unary if handler.request_streaming else handler.unary_unary
            async with self._guard(method, header, context):
                return await call(request, context)

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            call = handler.stream_stream if handler.request_streaming else handler.unary_stream
            async with self._guard(method, header, context):
                async for response in call(request, context):
                    yield response

        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        return make(
            stream if handler.response_streaming else unary,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _guard(self, method: str, header: str | None, context: Any) -> _Guard:
        return _Guard(self, method, header, context)


class _Guard:
    def __init__(self, interceptor: _Interceptor, method: str, header: str | None, context: Any) -> None:
        self._interceptor, self._method, self._header, self._context = interceptor, method, header, context
        self._timeout = asyncio.timeout(interceptor.max_call_s)
        self._started = 0.0

    async def __aenter__(self) -> None:
        self._started = time.monotonic()
        if self._interceptor.tokens is not None:
            try:
                self._interceptor.tokens.check(self._header, self._method in self._interceptor.admin_methods)
            except errors.TunetrialError as error:
                await self._abort(error)
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            error = errors.DeadlineExceeded("CALL_TOO_LONG", "a call may take {seconds} s at most", seconds=self._interceptor.max_call_s)
        if isinstance(error, errors.TunetrialError):
            await self._abort(error)
        # An abort inside a handler is grpc's own exception: its status is set already. Cancellation and a closed generator are no failures.
        own = isinstance(error, grpc.aio.AbortError | asyncio.CancelledError | GeneratorExit)
        if error is not None and not own:
            _log.error("call failed unexpectedly", rpc=self._method, exc_info=error)
            await self._abort(errors.Internal("INTERNAL", "{rpc} failed unexpectedly: {kind}", rpc=self._method, kind=type(error).__name__))
        self._interceptor.meter.record(self._method, "OK" if error is None else "CANCELLED", self._started)

    async def _abort(self, error: errors.TunetrialError) -> None:
        self._interceptor.meter.record(self._method, code_pb2.Code.Name(code(error)), self._started)
        await self._context.abort_with_status(rpc_status.to_status(to_status(error)))


@dataclass(frozen=True, slots=True)
class Service:
    """What `serve` needs to know of a service."""

    name: str
    """Full name in the contract: `tunetrial.judge.v1.JudgeService`."""
    add: Callable[[grpc.aio.Server], None]
    """Adds the servicer to a server."""
    admin_rpcs: tuple[str, ...] = ()
    """Names of the rpcs that change what is served and need the role admin."""
    close: Callable[[], Awaitable[None]] | None = None
    """Called after the last call has ended."""
    ready: Callable[[], Awaitable[None]] | None = None
    """Raises Unavailable while a part that the service needs is away; asked again and again. None: it needs none but itself."""


async def start(service: Service, settings: ServerSettings) -> tuple[grpc.aio.Server, int, health.aio.HealthServicer]:
    """A started server, its port and its health. Raises OSError when the address is taken.

    Health says SERVING for "", the process, at once, and NOT_SERVING for the service's name until told otherwise.
    """
    tokens = Tokens.read(settings.token_file) if settings.token_file else None
    admin = frozenset(f"/{service.name}/{rpc}" for rpc in service.admin_rpcs)
    from opentelemetry.instrumentation.grpc import aio_server_interceptor, filters  # noqa: PLC0415  after telemetry is set up

    # The instrumentation cannot wrap health's Watch, which writes to its context; probes would only be noise in traces anyhow.
    traced = filters.negate(filters.health_check())
    tracing = aio_server_interceptor(filter_=traced)  # type: ignore[no-untyped-call]  # the library ships no types

    server = grpc.aio.server(
        interceptors=[tracing, _Interceptor(tokens, admin, settings.max_call_s, telemetry.CallMeter())],
        maximum_concurrent_rpcs=settings.max_concurrent_calls,
        options=[
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ],
    )
    service.add(server)
    checks = health.aio.HealthServicer()
    await checks.set(service.name, health_pb2.HealthCheckResponse.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((service.name, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    credentials = server_credentials(settings)
    address = f"{settings.host}:{settings.port}"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    await server.start()
    return server, port, checks


async def serve(service: Service, settings: ServerSettings, prepare: Callable[[], Awaitable[None]] | None = None) -> None:
    """Runs the service until SIGTERM or SIGINT (or the end of standard input, by setting), then drains.

    `prepare` loads what the service cannot work without. The port is open before it; health says SERVING for the service's name only after
    it, and from then on while `service.ready` passes. For "" health says SERVING all the time: that is what a probe of liveness should ask,
    since a new process would bring no store back; a probe of readiness should ask the name.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.stop_with_stdin:
        await loop.connect_read_pipe(lambda: _StdinWatch(stop), sys.stdin)
    server, port, checks = await start(service, settings)
    if settings.port_file is not None:
        _write_port(settings.port_file, port)
    stopped = asyncio.create_task(stop.wait())
    if prepare is not None:
        prepared = asyncio.ensure_future(prepare())
        await asyncio.wait((prepared, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not prepared.done():
            prepared.cancel()
        elif prepared.exception() is not None:
            await server.stop(None)
            prepared.result()
    if not stop.is_set():
        # What is loaded by now stays: the collector need not look through all of it again and again while calls are answered.
        gc.collect()
        gc.freeze()
        following = asyncio.create_task(_follow(service, settings.health_interval_s, port, checks))
        await stopped
        following.cancel()
        await asyncio.wait((following,))
    _log.info("draining", service=service.name)
    await checks.enter_graceful_shutdown()
    await server.stop(settings.drain_s)
    if service.close is not None:
        await service.close()


async def _follow(service: Service, interval_s: float, port: int, checks: health.aio.HealthServicer) -> None:
    """Keeps health at what `service.ready` says, with a log line for each change."""
    last: str | None = None
    while True:
        trouble = await _trouble(service.ready, interval_s) if service.ready is not None else None
        reason = trouble.reason if trouble is not None else ""
        if reason != last:
            last = reason
            status = health_pb2.HealthCheckResponse.NOT_SERVING if trouble else health_pb2.HealthCheckResponse.SERVING
            await checks.set(service.name, status)
            if trouble is None:
                _log.info("serving", service=service.name, port=port)
            else:
                fault = trouble.__cause__ if isinstance(trouble, errors.Internal) else None
                _log.warning("not serving", service=service.name, reason=reason, message=trouble.message, exc_info=fault)
        if service.ready is None:
            return
        await asyncio.sleep(interval_s)


async def _trouble(ready: Callable[[], Awaitable[None]], limit_s: float) -> errors.TunetrialError | None:
    try:
        async with asyncio.timeout(limit_s):
            await ready()
    except TimeoutError:
        return errors.Unavailable("PROBE_TIMED_OUT", "what the service needs did not answer in {seconds} s", seconds=limit_s)
    except errors.TunetrialError as error:
        return error
    except Exception as error:  # a fault of the probe's own must not end the watch, with health left at what it said last
        fault = errors.Internal("PROBE_FAILED", "the probe failed unexpectedly: {kind}", kind=type(error).__name__)
        fault.__cause__ = error
        return fault
    return None


def _write_port(path: Path, port: int) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(str(port), encoding="ascii")
    partial.replace(path)


class _StdinWatch(asyncio.Protocol):
    """The parent holds the other end of standard input; when it dies, however it dies, input ends."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop.set()
