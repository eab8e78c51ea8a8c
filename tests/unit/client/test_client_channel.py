"""What may go over which channel."""

from __future__ import annotations

from pathlib import Path

import pytest
from tunetrial.client import ChannelSettings, GeneratorClient, SyncGeneratorClient, Tls

LOCAL = ("localhost:7002", "127.0.0.1:7002", "127.1.2.3:7002", "[::1]:7002", "dns:///localhost:7002", "unix:/run/generator.sock")
ELSEWHERE = (
    "generator:7002",
    "10.0.0.1:7002",
    "localhost.example.com:7002",
    "[2001:db8::1]:7002",
    "ipv4:10.0.0.1:7002",
    "127.0.0.1@other:1",
)


@pytest.mark.parametrize("address", ELSEWHERE)
async def test_a_token_does_not_leave_this_machine_in_the_clear(address: str) -> None:
    for client in (GeneratorClient, SyncGeneratorClient):
        with pytest.raises(ValueError, match=r"with tls=Tls\(\.\.\.\) only"):
            client(address, token="secret")
    await GeneratorClient(address, token="secret", tls=Tls()).close()
    await GeneratorClient(address).close()


@pytest.mark.parametrize("address", LOCAL)
async def test_a_token_may_go_to_this_machine_in_the_clear(address: str) -> None:
    await GeneratorClient(address, token="secret").close()
    SyncGeneratorClient(address, token="secret").close()


def test_a_certificate_needs_its_key_and_files_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="certificate and key together"):
        SyncGeneratorClient("generator:7002", tls=Tls(certificate=tmp_path / "tls.crt"))
    with pytest.raises(FileNotFoundError):
        SyncGeneratorClient("generator:7002", tls=Tls(ca=tmp_path / "ca.crt"))


@pytest.mark.parametrize("attempts", [0, 6])
def test_more_attempts_than_grpc_makes_are_refused(attempts: int) -> None:
    with pytest.raises(ValueError, match="1 to 5"):
        ChannelSettings(attempts=attempts)
