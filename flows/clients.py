"""Channels and stubs to the four services, with deadlines, retries and credentials. Knows no stage and starts no process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_status import rpc_status
from tunetrial.common.v1 import common_pb2
from tunetrial.generator.v1 import generator_pb2_grpc
from tunetrial.judge.v1 import judge_pb2_grpc
from tunetrial.retriever.v1 import retriever_pb2_grpc
from tunetrial.trainer.v1 import trainer_pb2_grpc

from flows.errors import TrialError, UserError

if TYPE_CHECKING:
    from tunetrial.generator.v1.generator_pb2_grpc import GeneratorServiceAsyncStub
    from tunetrial.judge.v1.judge_pb2_grpc import JudgeServiceAsyncStub
    from tunetrial.retriever.v1.retriever_pb2_grpc import RetrieverServiceAsyncStub
    from tunetrial.trainer.v1.trainer_pb2_grpc import TrainerServiceAsyncStub

SERVICES = ("retriever", "generator", "trainer", "judge")

_MESSAGE_BYTES = 16 * 2**20
# Only UNAVAILABLE is retried: the call did not reach a servicer, or the servicer says that the same call may succeed later.
_RETRY = {
    "maxAttempts": 5,
    "initialBackoff": "0.2s",
    "maxBackoff": "5s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# What a stream of requests says when the call ended while it was writing; grpc.aio then loses why it ended.
_WRITE_FAILED = "Internal error from Core"
_USERS_MISTAKES = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND}


class ServiceError(TrialError):
    """A service refused or failed. `reason` is the contract's, "" when the failure carries none."""

    def __init__(self, service: str, code: str, reason: str, message: str, *, users_mistake: bool = False) -> None:
        self.service, self.code, self.reason = service, code, reason
        self.exit_code = 2 if users_mistake else 1
        away = "\n  The same command goes on where it stopped once the service is back." if code == "UNAVAILABLE" else ""
        super().__init__(f"{service}: {message} [{reason or code}]{away}")


def explain(service: str, error: grpc.aio.AioRpcError) -> ServiceError:
    """The failure of a call in words for people."""
    reason = ""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # works on aio errors too, the types say sync only
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            reason = info.reason
    message = error.details() or "no reason given"
    code = grpc.StatusCode.UNAVAILABLE if error.code() == grpc.StatusCode.INTERNAL and message == _WRITE_FAILED else error.code()
    if code == grpc.StatusCode.UNAVAILABLE and not reason:
        message = f"cannot be reached or went away ({message})"
    return ServiceError(service, code.name, reason, message, users_mistake=code in _USERS_MISTAKES)


def explain_failure(service: str, failure: common_pb2.Failure) -> ServiceError:
    """The failure of one call among many."""
    code = next((status for status in grpc.StatusCode if status.value[0] == failure.code), grpc.StatusCode.UNKNOWN)
    return ServiceError(service, code.name, failure.reason, failure.message, users_mistake=code in _USERS_MISTAKES)


class Clients:
    """Stubs on channels that are opened when first used. Addresses are `host:port` by service."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = dict(addresses)
        self._channels: dict[str, grpc.aio.Channel] = {}

    @property
    def retriever(self) -> RetrieverServiceAsyncStub:
        """Stub of the retriever."""
        return retriever_pb2_grpc.RetrieverServiceStub(self.channel("retriever"))

    @property
    def generator(self) -> GeneratorServiceAsyncStub:
        """Stub of the generator."""
        return generator_pb2_grpc.GeneratorServiceStub(self.channel("generator"))

    @property
    def trainer(self) -> TrainerServiceAsyncStub:
        """Stub of the trainer."""
        return trainer_pb2_grpc.TrainerServiceStub(self.channel("trainer"))

    @property
    def judge(self) -> JudgeServiceAsyncStub:
        """Stub of the judge."""
        return judge_pb2_grpc.JudgeServiceStub(self.channel("judge"))

    def learn(self, service: str, address: str) -> None:
        """Adds the address of a service; one that is known keeps its channel."""
        self._addresses.setdefault(service, address)

    def channel(self, service: str) -> grpc.aio.Channel:
        """The channel to a service."""
        if service not in self._addresses:
            variable = f"TUNETRIAL_{service.upper()}_ADDRESS"
            raise UserError(f"the address of the {service} is not known: set {variable}, as for the other services")
        if service not in self._channels:
            self._channels[service] = _channel(self._addresses[service])
        return self._channels[service]

    async def serving(self, service: str) -> bool:
        """Whether the service says that it can work. Raises ServiceError when it cannot be reached."""
        check = self.channel(service).unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        try:
            response = await check(health_pb2.HealthCheckRequest(service=full_name(service)), timeout=10)
        except grpc.aio.AioRpcError as error:
            raise explain(service, error) from None
        return bool(response.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        """Closes all channels."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()


def full_name(service: str) -> str:
    """`judge` -> `tunetrial.judge.v1.JudgeService`."""
    return f"tunetrial.{service}.v1.{service.capitalize()}Service"


def addresses_from_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Addresses in `TUNETRIAL_<SERVICE>_ADDRESS`; services that are not named are left out."""
    named = {service: environment.get(f"TUNETRIAL_{service.upper()}_ADDRESS", "") for service in SERVICES}
    return {service: address for service, address in named.items() if address}


def _channel(address: str) -> grpc.aio.Channel:
    config = {"methodConfig": [{"name": [{"service": full_name(service)} for service in SERVICES], "retryPolicy": _RETRY}]}
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", _MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 30_000),
    ]
    token = os.environ.get("TUNETRIAL_TOKEN", "")
    ca = os.environ.get("TUNETRIAL_TLS_CA", "")
    if not ca:
        if token:
            raise TrialError("TUNETRIAL_TOKEN is set without TUNETRIAL_TLS_CA: a token is never sent over a channel in the clear")
        return grpc.aio.insecure_channel(address, options=options)
    certificate, key = os.environ.get("TUNETRIAL_TLS_CERTIFICATE", ""), os.environ.get("TUNETRIAL_TLS_KEY", "")
    credentials = grpc.ssl_channel_credentials(
        Path(ca).read_bytes(), Path(key).read_bytes() if key else None, Path(certificate).read_bytes() if certificate else None
    )
    if token:
        credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
    return grpc.aio.secure_channel(address, credentials, options=options)
