"""Trust in a server by the fingerprint of its certificate or of its CA. Knows no Elasticsearch."""

from __future__ import annotations

import hashlib
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit


def trusting_nobody() -> ssl.SSLContext:
    """A context that refuses every server until `trust` gave it a certificate; then the names in certificates do not matter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a certificate that is not a CA's is trusted as it is
    return context


def trust(context: ssl.SSLContext, url: str, fingerprint: str, timeout_s: float) -> None:
    """Lets `context` trust the one certificate with this SHA-256 fingerprint, and what it signed.

    The certificate is taken from those that the server at `url` shows. That it shows it proves nothing; the context does, which refuses a
    server whose own certificate the other did not sign. Raises OSError when the server cannot be reached, ssl.SSLError, which is one, when
    it shows no such certificate. Blocks.
    """
    at = urlsplit(url)
    address = (at.hostname or "", at.port or 443)
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False
    asking.verify_mode = ssl.CERT_NONE  # it is asked for its certificates and told nothing
    with socket.create_connection(address, timeout_s) as plain, asking.wrap_socket(plain, server_hostname=address[0]) as secured:
        shown = {hashlib.sha256(certificate).hexdigest(): certificate for certificate in _certificates(secured)}
    wanted = fingerprint.replace(":", "").lower()
    if wanted not in shown:
        raise ssl.SSLError(1, f"none has the fingerprint {wanted}; they have {', '.join(shown)}")
    context.load_verify_locations(cadata=shown[wanted])


def _certificates(secured: ssl.SSLSocket) -> list[bytes]:
    """What the server showed, its own certificate first."""
    if hasattr(secured, "get_unverified_chain"):  # from Python 3.13
        chain: list[bytes] = secured.get_unverified_chain()
        return chain
    certificates: Any = secured._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in certificates]
