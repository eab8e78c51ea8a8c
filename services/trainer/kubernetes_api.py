"""The part of the Kubernetes API that the launcher asks, as JSON values, with its errors in words. Knows no training.

Paths are those inside the namespace: `jobs/name`, `pods/name/log`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes_asyncio import client, config

from services.common.errors import AlreadyExists, FailedPrecondition, NotFound, Unavailable

_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_GROUPS = {"jobs": "/apis/batch/v1"}
_NOT_FOUND, _CONFLICT = 404, 409
_AWAY = (408, 425, 429)
_CALL_S = 30.0
_SILENCE_S = 300.0
"""A log that says nothing for so long is asked for anew: the connection may be dead and nobody said so."""
_VERBS = {"POST": "create", "DELETE": "delete", "GET": "get"}


class KubernetesApi:
    """One namespace, as the pod's own service account or by KUBECONFIG. Needs to be closed."""

    def __init__(self, namespace: str) -> None:
        """Contacts nothing. An empty namespace means the own one of the pod that this is, "default" outside of a cluster."""
        self.namespace = namespace
        self._client: client.ApiClient | None = None
        self._connecting = asyncio.Lock()

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """An object, or a list of them. Raises NotFound, FailedPrecondition KUBERNETES_REFUSED, Unavailable KUBERNETES_UNAVAILABLE."""
        return await self._ask("GET", path, query=query)

    async def create(self, kind: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """The object as it now is. Raises AlreadyExists, and what `get` does."""
        return await self._ask("POST", kind, body=manifest)

    async def delete(self, path: str, **options: Any) -> None:
        """Begins to delete an object. Raises what `get` does."""
        await self._ask("DELETE", path, body={"apiVersion": "v1", "kind": "DeleteOptions", **options})

    async def log(self, pod: str, container: str, since: str) -> AsyncIterator[bytes]:
        """Its log from a time on, or from its start, as it comes, in pieces of any length. Raises what `get` does."""
        query = {"container": container, "follow": "true", "timestamps": "true"} | ({"sinceTime": since} if since else {})
        path = f"pods/{pod}/log"
        with self._explained("GET", path):
            response = await self._call("GET", path, query, None, _preload_content=False, _request_timeout=(_CALL_S, _SILENCE_S))
            async with response:
                if response.status != 200:  # what was not read is not checked either
                    error = client.ApiException(status=response.status, reason=response.reason)
                    error.body = await response.text()
                    raise error
                async for piece in response.content.iter_any():
                    yield piece

    async def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            await self._client.close()

    async def _ask(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        with self._explained(method, path):
            found: dict[str, Any] = await self._call(method, path, query or {}, body, _request_timeout=_CALL_S)
            return found

    async def _call(self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None, **how: Any) -> Any:
        api = await self._connected()
        group = _GROUPS.get(path.partition("/")[0], "/api/v1")
        answers = {200: "object", 201: "object", 202: "object"}
        # As JSON, not as the library's classes: these refuse what a newer server adds, and take long to make.
        return await api.call_api(
            *(f"{group}/namespaces/{self.namespace}/{path}", method),
            query_params=list(query.items()),
            header_params={"Accept": "application/json, */*"},
            body=body,
            auth_settings=["BearerToken"],
            response_types_map=answers,
            _return_http_data_only=True,
            **how,
        )

    async def _connected(self) -> client.ApiClient:
        async with self._connecting:
            if self._client is None:
                found = client.Configuration()
                found.connection_pool_maxsize = 0  # without limit: each job's log keeps one open
                own = _own_namespace(found)
                if own is None:
                    await config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=found)
                self.namespace = self.namespace or own or "default"
                self._client = client.ApiClient(found)
            return self._client

    @contextlib.contextmanager
    def _explained(self, method: str, path: str) -> Iterator[None]:
        try:
            yield
        except client.ApiException as error:
            status, said = error.status or 0, _said(error)
            if status == _NOT_FOUND:
                raise NotFound("KUBERNETES_NOT_FOUND", "{path} is not there: {said}", path=path, said=said) from error
            if status == _CONFLICT:
                raise AlreadyExists("KUBERNETES_CONFLICT", "{path}: {said}", path=path, said=said) from error
            if status in _AWAY or not 400 <= status < 500:
                raise _away(said) from error
            raise self._refused(status, method, path, said) from error
        except config.ConfigException as error:
            raise FailedPrecondition("KUBERNETES_REFUSED", "there is no way to the cluster: {why}", why=error) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _away(f"{type(error).__name__}: {error}") from error

    def _refused(self, status: int, method: str, path: str, said: str) -> FailedPrecondition:
        verb, (kind, _, name) = _VERBS[method], path.partition("/")
        if method == "GET" and not name:
            verb = "list"
        what = f"{verb} {kind}{'/log' if name.endswith('/log') else ''}"
        message = "Kubernetes does not let the trainer {what} in namespace {namespace}: {said}"
        if status == 401:
            message += "; its credentials are not valid"
        # Quotas and policies forbid as well, by other words.
        elif status == 403 and "cannot" in said:
            message += "; the Role of its service account lacks that right (docs/trainer.md shows all)"
        return FailedPrecondition("KUBERNETES_REFUSED", message, what=what, namespace=self.namespace, said=said)


def _away(why: str) -> Unavailable:
    return Unavailable("KUBERNETES_UNAVAILABLE", "the Kubernetes API does not answer: {why}", why=why, retry_after_s=5)


def _own_namespace(configuration: client.Configuration) -> str | None:
    """The namespace of the pod that this is, whose service account is configured then; None outside of a cluster."""
    incluster: Any = config
    try:
        incluster.load_incluster_config(client_configuration=configuration)
        return _NAMESPACE.read_text(encoding="ascii").strip()
    except config.ConfigException:
        return None


def _said(error: client.ApiException) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(error.body or "")["message"])[:500]
    return " ".join(str(error.body or error.reason).split())[:500]
