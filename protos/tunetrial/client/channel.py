"""How a channel to the generator is made: credentials, retries, balance, keepalive, sizes. Opens none and knows no request."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import grpc

_SERVICE = "tunetrial.generator.v1.GeneratorService"
# Asking changes nothing in the generator, and gRPC repeats a call only while nothing of its answer has come: so these can be sent again.
# BatchGenerate is left out: what was sent on its stream is gone when it breaks.
_REPEATABLE = ("Generate", "Answer", "StreamGenerate", "StreamAnswer", "ListModels")


@dataclass(frozen=True, slots=True)
class Tls:
    """TLS to the generator. Files are PEM and are read when the client is made."""

    ca: str | Path | None = None
    """CA of the generator's certificate; None: those that gRPC brings along."""
    certificate: str | Path | None = None
    """Our certificate, for mutual TLS; goes with `key`."""
    key: str | Path | None = None
    """Our private key, for mutual TLS; goes with `certificate`."""


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """What seldom needs another value."""

    attempts: int = 5
    """Times that a call is sent at most while the answer is UNAVAILABLE, 1 to 5; 1 sends it once."""
    first_backoff_s: float = 0.2
    """Seconds before the second attempt, give or take a fifth; each further one waits twice as long, up to 5 s."""
    keepalive_s: float = 30.0
    """Seconds without traffic after which a call under way asks whether the connection still stands, at least 10."""
    max_message_bytes: int = 16 * 2**20
    """Largest message sent or taken. The generator has a limit of its own."""
    batch_stream_s: float = 600.0
    """Seconds after which a batch goes on on a new stream: a stream stays with one replica, and calls may not take for ever."""

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 5:
            raise ValueError("attempts must be 1 to 5: gRPC makes no more")


Access: TypeAlias = tuple[grpc.ChannelCredentials | None, tuple[tuple[str, str], ...]]
"""Credentials of a channel, None for one in the clear, and metadata of each of its calls."""


def access(address: str, tls: Tls | None, token: str) -> Access:
    """What a client with this address sends.

    Raises ValueError when a token would leave this machine in the clear, or only one of certificate and key is given.
    """
    if tls is not None:
        if (tls.certificate is None) != (tls.key is None):
            raise ValueError("give certificate and key together")
        ca, certificate, key = (None if file is None else Path(file).read_bytes() for file in (tls.ca, tls.certificate, tls.key))
        channel = grpc.ssl_channel_credentials(ca, key, certificate)
        return (grpc.composite_channel_credentials(channel, grpc.access_token_call_credentials(token)) if token else channel), ()
    if not token:
        return None, ()
    if not _is_local(address):
        raise ValueError(f"a token goes to {address} with tls=Tls(...) only: in the clear everybody on the way could read it")
    # These refuse a peer that turns out to be elsewhere. gRPC sends no call credentials without encryption, so the token goes as metadata.
    kind = grpc.LocalConnectionType.UDS if address.startswith("unix:") else grpc.LocalConnectionType.LOCAL_TCP
    return grpc.local_channel_credentials(kind), (("authorization", f"Bearer {token}"),)


def options(settings: ChannelSettings) -> list[tuple[str, str | int]]:
    """Options of the channel."""
    return [
        ("grpc.service_config", json.dumps(_service_config(settings))),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", int(settings.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A model may think for long before it says anything; gRPC would stop asking after two questions.
        ("grpc.http2.max_pings_without_data", 0),
    ]


def _service_config(settings: ChannelSettings) -> dict[str, object]:
    retry = {
        "maxAttempts": settings.attempts,
        "initialBackoff": f"{settings.first_backoff_s}s",
        "maxBackoff": "5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config: dict[str, object] = {
        # Every replica behind the address gets its share; the default would send everything to the first.
        "loadBalancingConfig": [{"round_robin": {}}],
        # While more than half of all attempts fail, nothing is repeated after a while: a generator that comes back is not run down.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 1},
    }
    if settings.attempts > 1:
        config["methodConfig"] = [{"name": [{"service": _SERVICE, "method": name} for name in _REPEATABLE], "retryPolicy": retry}]
    return config


def _is_local(address: str) -> bool:
    if address.startswith("unix:"):
        return True
    host = urlsplit("//" + address.removeprefix("dns:///")).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
