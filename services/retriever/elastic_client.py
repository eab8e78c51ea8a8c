"""The connection to Elasticsearch: the client of the server's major version, and its failures in words. Knows no passage.

A client of version 9 and a server of version 8 refuse each other, so both clients are installed and the server decides: it is asked in the
words of version 9, and a server that knows only 8 says so.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import elasticsearch
import elasticsearch8
import structlog
from elastic_transport import ApiError, ConnectionTimeout, OrjsonSerializer, TlsError, TransportError
from elasticsearch import AsyncElasticsearch
from elasticsearch.helpers import async_streaming_bulk
from elasticsearch8.helpers import async_streaming_bulk as async_streaming_bulk8

from services.common.errors import FailedPrecondition, Internal, ResourceExhausted, TunetrialError, Unavailable
from services.retriever.domain import not_found, sealed
from services.retriever.elastic_tls import trust, trusting_nobody

_log = structlog.get_logger()
# The library writes a traceback for every attempt, many a second while a cluster is away; what failed is in the error that is raised.
logging.getLogger("elastic_transport").setLevel(logging.CRITICAL)

_RETRY_AFTER_S = 2
_BUSY = 429
_DENIED = (401, 403)
_AWAY = (502, 503, 504)


class ElasticConnection:
    """One client for the process, chosen at the first call and kept."""

    def __init__(self, options: Mapping[str, Any], fingerprint: str = "") -> None:
        """`options` are keyword arguments of AsyncElasticsearch; with a `fingerprint` they name no CA.

        Nothing is sent yet: the cluster may be away. Raises ValueError or OSError for options that can never work.
        """
        own: dict[str, Any] = {"serializers": {"application/json": OrjsonSerializer()}}
        self._fingerprint, self._urls, self._timeout_s = fingerprint, options.get("hosts", ()), float(options["request_timeout"])
        self._context = trusting_nobody() if fingerprint else None
        options = dict(options)
        if self._context is not None:
            certificate, key = options.pop("client_cert", None), options.pop("client_key", None)
            if certificate is not None:
                self._context.load_cert_chain(certificate, key)
            own["ssl_context"] = self._context
        self._newest = AsyncElasticsearch(**options, **own)
        # Both majors have the same calls as far as they are used here.
        self._older = cast(AsyncElasticsearch, elasticsearch8.AsyncElasticsearch(**options, **own))
        self._client: AsyncElasticsearch | None = None
        self._choosing: asyncio.Task[AsyncElasticsearch] | None = None

    async def client(self) -> AsyncElasticsearch:
        """The client for the server's version. Raises Unavailable INDEX_STORE_UNAVAILABLE, FailedPrecondition INDEX_STORE_UNSUPPORTED."""
        if self._client is None:
            if self._choosing is None or self._choosing.done():
                self._choosing = asyncio.create_task(self._choose())
                self._choosing.add_done_callback(lambda task: task.cancelled() or task.exception())  # all callers may have gone away
            # One attempt for all who wait; one of them who goes away does not end it for the others.
            self._client = await asyncio.shield(self._choosing)
        return self._client

    async def _choose(self) -> AsyncElasticsearch:
        if self._context is not None:
            await self._pin(self._context)
        for client in (self._newest, self._older):
            with explained("any"):
                try:
                    await client.cluster.health()
                except ApiError as error:
                    if "media_type_header_exception" not in str(error.body):
                        raise
                else:
                    _log.info("connected to Elasticsearch", client_major=8 if client is self._older else 9)
                    return client
        raise FailedPrecondition("INDEX_STORE_UNSUPPORTED", "Elasticsearch must be of version 8.19 or 9")

    async def _pin(self, context: ssl.SSLContext) -> None:
        """Takes the certificate with the fingerprint from the first server that answers."""
        failed: OSError | None = None
        for url in self._urls:
            try:
                await asyncio.to_thread(trust, context, url, self._fingerprint, self._timeout_s)
            except OSError as error:
                failed = error
            else:
                return
        if isinstance(failed, ssl.SSLError):
            raise _unavailable(f"its certificates were not accepted ({failed})") from failed
        raise _unavailable(f"it cannot be reached ({failed})") from failed

    async def bulk(self, actions: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
        """What became of each action, in any order. The server's 429 is waited for, for about two minutes."""
        client = await self.client()
        if client is self._older:
            stream = async_streaming_bulk8(cast(Any, client), actions, **_BULK, **options)
        else:
            stream = async_streaming_bulk(client, actions, **_BULK, **options)
        return [next(iter(item.values())) async for _, item in stream]

    async def close(self) -> None:
        """Closes the connections."""
        if self._choosing is not None:
            self._choosing.cancel()
            await asyncio.wait((self._choosing,))
        await self._newest.close()
        await self._older.close()


_BULK: dict[str, Any] = {
    "chunk_size": 1000,
    "max_chunk_bytes": 20 * 2**20,
    "raise_on_error": False,
    "raise_on_exception": False,  # a whole request that was refused for 429 is waited for like a part of one
    "max_retries": 7,
    "initial_backoff": 1,
    "max_backoff": 60,
}


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Failures of the server, about index `name`, as errors of the domain."""
    try:
        yield
    except TlsError as error:
        raise _unavailable(f"its certificate was not accepted, or it does not speak TLS ({error.message})") from error
    except ConnectionTimeout as error:
        raise _unavailable("it did not answer in time (TUNETRIAL_ELASTICSEARCH_TIMEOUT_S)") from error
    except TransportError as error:
        raise _unavailable(f"it cannot be reached ({error.message})") from error
    except (elasticsearch.UnsupportedProductError, elasticsearch8.UnsupportedProductError) as error:
        raise FailedPrecondition("INDEX_STORE_UNSUPPORTED", "what answers at this address is not Elasticsearch") from error
    except ApiError as error:
        raise failure(name, error.meta.status, error.body) from error


def failure(name: str, status: int, body: Any) -> TunetrialError:
    """The error for an answer of the server other than success; `body` is {"error": ...} or that error itself."""
    kind, why = _cause(status, body)
    blocked = kind == "cluster_block_exception"
    if kind == "index_not_found_exception":
        return not_found(name)
    if blocked and "index write (api)" in why:
        return sealed(name)
    if "[rrf]" in why or "(RRF)" in why:
        message = "this Elasticsearch does not fuse ({why}): unset TUNETRIAL_ELASTICSEARCH_SERVER_FUSION"
        return FailedPrecondition("SERVER_FUSION_UNAVAILABLE", message, why=why)
    if "disk usage exceeded" in why or "read-only / allow delete" in why:
        message = "the disk of the index store is full (index {name}): make room and repeat; what was stored before is still there"
        error: TunetrialError = ResourceExhausted("DISK_FULL", message, name=name, why=why)
    elif status == _BUSY:
        message = "Elasticsearch is busy (index {name}): {why}"
        error = ResourceExhausted("INDEX_STORE_BUSY", message, name=name, why=why, retry_after_s=_RETRY_AFTER_S)
    elif status in _DENIED and not blocked:
        message = "Elasticsearch refused these credentials, or they may not do this (status {status}, {kind}): see docs/elasticsearch.md"
        error = FailedPrecondition("INDEX_STORE_DENIED", message, status=status, kind=kind)
    elif status in _AWAY or blocked:
        error = _unavailable(why)
    else:
        message = "Elasticsearch refused a request about index {name}: {kind}: {why}"
        error = Internal("INDEX_STORE_FAILED", message, name=name, kind=kind, why=why)
    return error


def _cause(status: int, body: Any) -> tuple[str, str]:
    """Type and reason of an error, as the server says them."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):  # of a proxy before the server
        return str(status), str(error)[:300] or f"status {status}"
    first = (error.get("root_cause") or [error])[0]
    kind = str(first.get("type", status))
    return kind, str(first.get("reason") or kind)[:300]


def _unavailable(why: str) -> Unavailable:
    message = "Elasticsearch is away: {why}; the same call may succeed later"
    return Unavailable("INDEX_STORE_UNAVAILABLE", message, why=why, retry_after_s=_RETRY_AFTER_S)
