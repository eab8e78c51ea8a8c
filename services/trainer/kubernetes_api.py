"""The part of the Kubernetes API that the launcher asks, as JSON values, with its errors in words. Knows no training.

Paths are those inside the namespace: `jobs/name`, `pods/name/log`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from kubernetes_asyncio import client, config

from services.common.errors import AlreadyExists, FailedPrecondition, NotFound
from services.common.kubernetes import Connection, away, reaching, said

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
        self._connection = Connection(namespace)

    @property
    def namespace(self) -> str:
        """Its name, once the API was asked."""
        return self._connection.namespace

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
        await self._connection.close()

    async def _ask(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        with self._explained(method, path):
            found: dict[str, Any] = await self._call(method, path, query or {}, body, _request_timeout=_CALL_S)
            return found

    async def _call(self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None, **how: Any) -> Any:
        api = await self._connection.client()
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

    @contextlib.contextmanager
    def _explained(self, method: str, path: str) -> Iterator[None]:
        try:
            with reaching():
                yield
        except client.ApiException as error:
            status, why = error.status or 0, said(error)
            if status == _NOT_FOUND:
                raise NotFound("KUBERNETES_NOT_FOUND", "{path} is not there: {said}", path=path, said=why) from error
            if status == _CONFLICT:
                raise AlreadyExists("KUBERNETES_CONFLICT", "{path}: {said}", path=path, said=why) from error
            if status in _AWAY or not 400 <= status < 500:
                raise away(why) from error
            raise self._refused(status, method, path, why) from error
        except config.ConfigException as error:
            raise FailedPrecondition("KUBERNETES_REFUSED", "there is no way to the cluster: {why}", why=error) from error

    def _refused(self, status: int, method: str, path: str, why: str) -> FailedPrecondition:
        verb, (kind, _, name) = _VERBS[method], path.partition("/")
        if method == "GET" and not name:
            verb = "list"
        what = f"{verb} {kind}{'/log' if name.endswith('/log') else ''}"
        message = "Kubernetes does not let the trainer {what} in namespace {namespace}: {said}"
        if status == 401:
            message += "; its credentials are not valid"
        # Quotas and policies forbid as well, by other words.
        elif status == 403 and "cannot" in why:
            message += "; the Role of its service account lacks that right (docs/trainer.md shows all)"
        return FailedPrecondition("KUBERNETES_REFUSED", message, what=what, namespace=self.namespace, said=why)
