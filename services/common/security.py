"""Credentials of servers, tokens of callers, and which URIs a request may name. Knows no service."""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import grpc

from services.common.errors import InvalidArgument, PermissionDenied, Unauthenticated
from services.common.object_store import is_url
from services.common.settings import ServerSettings

_URL = re.compile(r"[a-z][a-z0-9+.-]*://[A-Za-z0-9._~/+=@-]+")
ROLES = ("use", "admin")


def server_credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """TLS credentials that follow their files: a new connection gets the certificate that is there now. None without TLS.

    Raises ValueError when only one of certificate and key is set.
    """
    certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
    if certificate is None and key is None:
        if client_ca is not None:
            raise ValueError("TUNETRIAL_TLS_CLIENT_CA needs TUNETRIAL_TLS_CERTIFICATE and TUNETRIAL_TLS_KEY as well")
        return None
    if certificate is None or key is None:
        raise ValueError("set TUNETRIAL_TLS_CERTIFICATE and TUNETRIAL_TLS_KEY together")

    def configuration() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(key.read_bytes(), certificate.read_bytes())], client_ca.read_bytes() if client_ca else None
        )

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, require_client_authentication=client_ca is not None)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Bearer tokens and the role of each: `use` may call, `admin` may also change what is served."""

    roles: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Tokens of a file with lines `token role`; '#' starts a comment. Raises ValueError naming the line that is wrong."""
        roles: dict[str, str] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            words = line.split("#", 1)[0].split()
            if not words:
                continue
            if len(words) != 2 or words[1] not in ROLES:
                raise ValueError(f"{path}:{number}: expected `token role` with role use or admin")
            roles[words[0]] = words[1]
        return cls(roles)

    def check(self, header: str | None, admin: bool) -> None:
        """Raises Unauthenticated or PermissionDenied."""
        scheme, _, given = (header or "").partition(" ")
        # Every token is compared, in constant time, so that the time taken tells nothing.
        role = None
        for token, its_role in self.roles.items():
            if hmac.compare_digest(token.encode(), given.encode()):
                role = its_role
        if scheme.lower() != "bearer" or role is None:
            raise Unauthenticated("TOKEN_INVALID", "send a valid token as metadata `authorization: Bearer <token>`")
        if admin and role != "admin":
            raise PermissionDenied("ROLE_NEEDED", "this call needs a token with role {role}", role="admin")


def allowed_path(uri: str, roots: str) -> Path:
    """The local path that `uri` (a path or file: URI) names, links followed. Raises InvalidArgument URI_NOT_ALLOWED outside `roots`."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        raise InvalidArgument("URI_NOT_ALLOWED", "{uri}: only local paths and file: URIs are served", uri=uri, field="uri")
    path = Path(unquote(parts.path) if parts.scheme else uri).resolve()
    for root in _split(roots):
        if not is_url(root) and path.is_relative_to(Path(root.removeprefix("file://")).resolve()):
            return path
    raise _not_allowed(uri)


def allowed_uri(uri: str, roots: str) -> Path | str:
    """As `allowed_path`; or the URL of an object store, as it is, where it lies under a root that is a URL."""
    if not is_url(uri):
        return allowed_path(uri, roots)
    # Nothing that a store or its library might read as leading elsewhere: steps up, queries, escapes, one URL in another.
    plain = _URL.fullmatch(uri) and not any(part in ("", ".", "..") for part in uri.rstrip("/").split("/")[2:])
    if plain and any(f"{uri.rstrip('/')}/".startswith(f"{root.rstrip('/')}/") for root in _split(roots) if is_url(root)):
        return uri.rstrip("/")
    raise _not_allowed(uri)


def _split(roots: str) -> list[str]:
    """The roots, of which some may be URLs."""
    return [root for root in re.split(r":(?!//)", roots) if root]


def _not_allowed(uri: str) -> InvalidArgument:
    return InvalidArgument("URI_NOT_ALLOWED", "{uri} is not under TUNETRIAL_URI_ROOTS", uri=uri, field="uri")
