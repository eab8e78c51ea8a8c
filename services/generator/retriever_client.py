"""The retriever over gRPC. Knows the contract of the retriever and nothing of how it searches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tunetrial.retriever.v1 import retriever_pb2, retriever_pb2_grpc

from services.common import errors
from services.generator.domain import Hit, Passage, Retrieval
from services.generator.settings import Settings

_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "tunetrial.retriever.v1.RetrieverService"}],
                # A search changes nothing, so it may be sent again.
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
_KINDS: Mapping[grpc.StatusCode, type[errors.TunetrialError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.ABORTED: errors.Aborted,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unimplemented,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
}


def credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    """TLS, mutual TLS and token for the channel to the retriever, as set; None for a channel in the clear.

    Raises ValueError when a token would go over a channel in the clear, or only one of certificate and key is set.
    """
    ca, certificate, key = settings.retriever_tls_ca, settings.retriever_tls_certificate, settings.retriever_tls_key
    token = settings.retriever_token.get_secret_value()
    if (certificate is None) != (key is None):
        raise ValueError("set TUNETRIAL_RETRIEVER_TLS_CERTIFICATE and TUNETRIAL_RETRIEVER_TLS_KEY together")
    if ca is None:
        if token or certificate is not None:
            raise ValueError(
                "a token or certificate for the retriever needs TUNETRIAL_RETRIEVER_TLS_CA: neither goes over a channel in the clear"
            )
        return None
    channel = grpc.ssl_channel_credentials(
        ca.read_bytes(), None if key is None else key.read_bytes(), None if certificate is None else certificate.read_bytes()
    )
    return grpc.composite_channel_credentials(channel, grpc.access_token_call_credentials(token)) if token else channel


class GrpcRetriever:
    """A retriever at an address."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None, max_message_bytes: int) -> None:
        options: list[tuple[str, Any]] = [
            ("grpc.service_config", _SERVICE_CONFIG),
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
        ]
        self._address = address
        self._channel = (
            grpc.aio.secure_channel(address, credentials, options) if credentials else grpc.aio.insecure_channel(address, options)
        )
        self._stub: retriever_pb2_grpc.RetrieverServiceAsyncStub = retriever_pb2_grpc.RetrieverServiceStub(self._channel)

    async def search(self, retrieval: Retrieval, query: str, timeout_s: float | None) -> tuple[Hit, ...]:
        """Ranked passages. Raises the retriever's own errors; Unavailable RETRIEVER_UNAVAILABLE when it cannot be reached."""
        settings = retriever_pb2.SearchSettings.FromString(retrieval.settings)
        request = retriever_pb2.SearchRequest(index=retrieval.index, query=query, settings=settings)
        try:
            response = await self._stub.Search(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise self._meaning(error) from error
        return tuple(_hit(hit) for hit in response.hits)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    def _meaning(self, error: grpc.aio.AioRpcError) -> errors.TunetrialError:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # reads aio errors too; its types name the sync call only
        for detail in status.details if status else ():
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                kind = _KINDS.get(error.code(), errors.Internal)
                # The message is ready text, not a pattern.
                text = (error.details() or "").replace("{", "{{").replace("}", "}}")
                return kind(info.reason, text, **dict(info.metadata))
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceeded("DEADLINE_EXCEEDED", "the retriever did not answer in the time that was left")
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return errors.Unavailable("RETRIEVER_UNAVAILABLE", "the retriever at {address} cannot be reached", address=self._address)
        return errors.Unavailable(
            "RETRIEVER_UNAVAILABLE",
            "the retriever at {address} failed: {code} {why}",
            address=self._address,
            code=error.code().name,
            why=error.details(),
        )


def _hit(hit: retriever_pb2.Hit) -> Hit:
    found = hit.passage
    passage = Passage(found.id, found.text, found.document, found.title, found.heading, dict(found.metadata))
    return Hit(
        passage,
        hit.rank,
        hit.score,
        hit.lexical_rank if hit.HasField("lexical_rank") else None,
        hit.lexical_score if hit.HasField("lexical_score") else None,
        hit.dense_rank if hit.HasField("dense_rank") else None,
        hit.dense_score if hit.HasField("dense_score") else None,
        hit.rerank_score if hit.HasField("rerank_score") else None,
    )
