"""The traps of Text Generation Inference are in the server of these tests: asked carelessly, it answers as the real one does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from tgi_server import Start, serving

from services.generator.transformers_engine import TransformersEngine


@pytest_asyncio.fixture
async def tgi(engine: TransformersEngine) -> AsyncIterator[httpx2.AsyncClient]:
    async with serving(engine, Start({"ada.1": "ada.1"}, api_key="Secret")) as (server,):
        headers = {"authorization": "bearer sEcReT"}  # compared without regard to case
        async with httpx2.AsyncClient(base_url=server.url, headers=headers, trust_env=False) as client:
            yield client


async def text(tgi: httpx2.AsyncClient, **body: Any) -> str:
    response = await tgi.post("/generate", json={"inputs": "who built it?", **body})
    assert response.status_code == 200, response.text
    return str(response.json()["generated_text"])


async def test_an_unknown_adapter_is_answered_by_the_base_and_nothing_lists_those_that_are_known(tgi: httpx2.AsyncClient) -> None:
    base = await text(tgi, parameters={})
    assert await text(tgi, parameters={"adapter_id": "nobody"}) == base
    assert await text(tgi, parameters={"adapter_id": "/models/tiny"}) == base
    assert await text(tgi, parameters={"adapter_id": "ada.1"}) != base
    for path in ("/info", "/v1/models"):
        assert "ada.1" not in (await tgi.get(path, headers={"authorization": ""})).text


async def test_it_samples_where_nobody_said_so_and_with_another_seed_each_time(tgi: httpx2.AsyncClient) -> None:
    greedy = await text(tgi, parameters={})
    assert greedy == await text(tgi, parameters={"do_sample": False})
    assert len({greedy, await text(tgi), await text(tgi)}) == 3
    assert len({greedy, await text(tgi, parameters={"top_p": 0.99}), await text(tgi, parameters={"temperature": 2.0})}) == 3


@pytest.mark.parametrize(
    "parameters",
    [{"temperature": 0}, {"top_p": 1.0}, {"stop": list("abcde")}, {"top_n_tokens": 6}, {"grammar": {"type": "json", "value": {}}}],
)
async def test_it_refuses_what_others_take_and_in_a_stream_it_does_so_with_status_200(
    tgi: httpx2.AsyncClient, parameters: dict[str, Any]
) -> None:
    body = {"inputs": "who?", "parameters": parameters}
    whole = await tgi.post("/generate", json=body)
    assert (whole.status_code, whole.json()["error_type"]) == (422, "validation")
    stream = await tgi.post("/generate_stream", json=body)
    assert stream.status_code == 200
    assert stream.text.startswith('data:{"error":')


async def test_only_what_generates_asks_for_the_key(tgi: httpx2.AsyncClient) -> None:
    for path in ("/generate", "/generate_stream", "/tokenize"):
        refused = await tgi.post(path, json={"inputs": "who?"}, headers={"authorization": "Bearer other"})
        assert (refused.status_code, refused.content) == (401, b"")
    assert (await tgi.get("/health", headers={"authorization": ""})).status_code == 200


async def test_stop_texts_stay_in_and_log_probabilities_of_prompts_come_only_when_asked_for(tgi: httpx2.AsyncClient) -> None:
    parameters = {"max_new_tokens": 12, "details": True}
    first = (await tgi.post("/generate", json={"inputs": "who?", "parameters": parameters})).json()
    texts = [token["text"] for token in first["details"]["tokens"]]
    stop = next(text for text in texts if text.isascii())
    response = await tgi.post(
        "/generate", json={"inputs": "who?", "parameters": {**parameters, "stop": [stop], "decoder_input_details": True}}
    )
    found = response.json()
    assert found["generated_text"].endswith(stop)
    assert (found["details"]["finish_reason"], found["details"]["generated_tokens"]) == ("stop_sequence", texts.index(stop) + 1)
    assert first["details"]["prefill"] == []
    assert [token["logprob"] is None for token in found["details"]["prefill"]] == [
        True,
        *[False] * (int(response.headers["x-prompt-tokens"]) - 1),
    ]
