"""One question to the generator, streamed. Knows no stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunetrial.generator.v1 import generator_pb2
from tunetrial.retriever.v1 import retriever_pb2

from flows.clients import ServiceError
from flows.connections import Services, running_services
from flows.errors import TrialError, UserError


async def ask_once(
    home: Path, question: str, *, model: str, index: str, k: int, max_tokens: int, show: Callable[[str], None]
) -> dict[str, Any]:
    """The answer with its passages; `show` gets the text as it comes. UserError when no services run."""
    done = generator_pb2.AnswerResponse()
    async with running_services(home) as services:
        try:
            async with services.use("generator") as clients:
                request = generator_pb2.AnswerRequest(
                    model=model or await _first_base(services),
                    question=question,
                    decoding=generator_pb2.Decoding(max_tokens=max_tokens),
                    overflow=generator_pb2.OVERFLOW_CUT_PASSAGES,
                )
                if index:
                    settings = retriever_pb2.SearchSettings(k=k)
                    request.retrieval.CopyFrom(generator_pb2.Retrieval(index=index, settings=settings))
                async for response in clients.generator.StreamAnswer(generator_pb2.StreamAnswerRequest(answer=request), timeout=600):
                    if response.HasField("text"):
                        show(response.text)
                    elif response.HasField("done"):
                        done = response.done
        except ServiceError as error:
            raise await _with_names(services, error) from error
    return {
        "answer": done.text,
        "model": done.model,
        "abstained": done.abstained,
        "passages": [{"rank": hit.rank, "id": hit.passage.id, "text": hit.passage.text} for hit in done.shown],
        "cited": [citation.passage_id for citation in done.citations],
        "cut": list(done.cut_passage_ids),
        "prompt_tokens": done.usage.prompt_tokens,
        "completion_tokens": done.usage.completion_tokens,
        "latency_ms": round(done.usage.latency_ms, 1),
    }


async def _with_names(services: Services, error: ServiceError) -> TrialError:
    """The same error; for a name that does not exist, with those that do."""
    if error.reason == "INDEX_NOT_FOUND":
        async with services.use("retriever") as clients:
            indexes = (await clients.retriever.ListIndexes(retriever_pb2.ListIndexesRequest(), timeout=60)).indexes
        return UserError(f"{error}\n  indexes: {', '.join(index.name for index in indexes) or 'none; a trial makes one'}")
    if error.reason == "MODEL_NOT_FOUND":
        async with services.use("generator") as clients:
            models = (await clients.generator.ListModels(generator_pb2.ListModelsRequest(), timeout=60)).models
        return UserError(f"{error}\n  models: {', '.join(model.name for model in models)}")
    return error


async def _first_base(services: Services) -> str:
    async with services.use("generator") as clients:
        listed = await clients.generator.ListModels(generator_pb2.ListModelsRequest(page_size=1), timeout=60)
    if not listed.models:
        raise UserError("the generator serves no model")
    return listed.models[0].name
