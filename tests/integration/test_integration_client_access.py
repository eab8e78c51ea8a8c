"""Tokens and certificates between the clients and a running generator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from tunetrial.client import GeneratorClient, GeneratorError, SyncGeneratorClient, Tls, generate_request

from tests.integration.generator_process import Certificates, Running, generator, make_certificates

TOKEN = "token-of-a-caller"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("access")
    (folder / "tokens").write_text(f"{TOKEN} use\n")
    return folder


@pytest.fixture(scope="module")
def in_the_clear(folder: Path) -> Iterator[Running]:
    with generator(folder / "clear", token_file=str(folder / "tokens")) as running:
        yield running


@pytest.fixture(scope="module")
def certificates(folder: Path) -> Certificates:
    return make_certificates(folder)


@pytest.fixture(scope="module")
def mutual(folder: Path, certificates: Certificates) -> Iterator[Running]:
    certificate, key = str(certificates.certificate), str(certificates.key)
    settings = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": certificate}
    with generator(folder / "mutual", token_file=str(folder / "tokens"), **settings) as running:
        yield running


async def refusal(client: GeneratorClient) -> tuple[grpc.StatusCode, str]:
    async with client:
        with pytest.raises(GeneratorError) as error:
            await client.models()
    return error.value.code, error.value.reason


async def test_a_token_on_this_machine_opens_every_call(in_the_clear: Running) -> None:
    requests = [("one", generate_request("small", "the", max_tokens=1))]
    with SyncGeneratorClient(in_the_clear.address, token=TOKEN) as client:
        assert [model.name for model in client.models()] == ["small"]
        assert [name for name, _ in client.batch(requests)] == ["one"]
        assert len(list(client.stream_generate("small", "the", max_tokens=1))) > 0
    async with GeneratorClient(f"localhost:{in_the_clear.port}", token=TOKEN) as async_client:
        assert [model.name for model in await async_client.models()] == ["small"]
        assert [name async for name, _ in async_client.batch(requests)] == ["one"]


async def test_without_the_right_token_every_call_is_refused(in_the_clear: Running) -> None:
    refused = (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
    assert await refusal(GeneratorClient(in_the_clear.address)) == refused
    assert await refusal(GeneratorClient(in_the_clear.address, token="another")) == refused
    # Many large requests: they are still being written when the refusal comes, and its reason must not be lost for that.
    large = [(str(number), generate_request("small", "the " * 50_000)) for number in range(50)]
    for _ in range(5):
        async with GeneratorClient(in_the_clear.address, token="another") as async_client:
            with pytest.raises(GeneratorError) as error:
                [result async for result in async_client.batch(large)]
            assert (error.value.code, error.value.reason) == refused
        with SyncGeneratorClient(in_the_clear.address, token="another") as client, closing(client.batch(large)) as results:
            with pytest.raises(GeneratorError) as error:
                next(results)
            assert (error.value.code, error.value.reason) == refused


async def test_certificates_of_both_sides_and_a_token_go_together(mutual: Running, certificates: Certificates) -> None:
    own = Tls(ca=certificates.certificate, certificate=certificates.certificate, key=str(certificates.key))
    with SyncGeneratorClient(mutual.address, tls=own, token=TOKEN) as client:
        assert [model.name for model in client.models()] == ["small"]
    async with GeneratorClient(f"localhost:{mutual.port}", tls=own, token=TOKEN) as async_client:
        assert [model.name for model in await async_client.models()] == ["small"]
    assert await refusal(GeneratorClient(mutual.address, tls=own)) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


async def test_a_side_that_cannot_prove_itself_is_not_talked_to(mutual: Running, certificates: Certificates, tmp_path: Path) -> None:
    away = (grpc.StatusCode.UNAVAILABLE, "")
    assert await refusal(GeneratorClient(mutual.address, tls=Tls(ca=certificates.certificate), token=TOKEN)) == away
    other = make_certificates(tmp_path)
    assert await refusal(GeneratorClient(mutual.address, tls=Tls(other.certificate, other.certificate, other.key), token=TOKEN)) == away
    assert await refusal(GeneratorClient(mutual.address)) == away
