"""Clients of the generator: `GeneratorClient` for asyncio, `SyncGeneratorClient` without. They need grpcio and protobuf, nothing else.

Arguments are plain values; results are the messages of the contract (`tunetrial.generator.v1`), so what is added there is here as well.
"""

from tunetrial.client.asynchronous import GeneratorClient
from tunetrial.client.channel import ChannelSettings, Tls
from tunetrial.client.errors import GeneratorError
from tunetrial.client.requests import Asking, Decoding, answer_request, generate_request
from tunetrial.client.synchronous import SyncGeneratorClient

__all__ = [
    "Asking",
    "ChannelSettings",
    "Decoding",
    "GeneratorClient",
    "GeneratorError",
    "SyncGeneratorClient",
    "Tls",
    "answer_request",
    "generate_request",
]
