"""A generator in memory that counts what it is asked, and knows what a test tells it to know."""

# ruff: noqa: N802  rpc names are the contract's

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from tunetrial.common.v1 import common_pb2
from tunetrial.generator.v1 import generator_pb2 as pb
from tunetrial.generator.v1 import generator_pb2_grpc

from flows.prompting import Shot, Template, prompt_hash

Asked = tuple[str, tuple[str, ...], int | None]
"""A question, the questions of the worked examples before it, and the seed, None for greedy."""


@dataclass
class FakeGenerator(generator_pb2_grpc.GeneratorServiceServicer):
    """`says` gives the answer; after `lasts` answers it is away, until that is set anew. `failures` are by question."""

    says: Callable[[Asked], str]
    lasts: int = 10**9
    base: str = "owner/base"
    answers_as: str = "small"
    failures: dict[str, str] = field(default_factory=dict)
    asked: Counter[Asked] = field(default_factory=Counter)
    requests: list[pb.AnswerRequest] = field(default_factory=list)

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(models=[pb.Model(name="small", kind=pb.MODEL_KIND_BASE, uri=self.base)])

    async def BatchGenerate(
        self, requests: AsyncIterator[pb.BatchGenerateRequest], context: Any
    ) -> AsyncIterator[pb.BatchGenerateResponse]:
        async for request in requests:
            if self.lasts <= 0:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            self.lasts -= 1
            yield self._answer(request)

    def _answer(self, request: pb.BatchGenerateRequest) -> pb.BatchGenerateResponse:
        asked = request.answer
        reason = self.failures.get(asked.question)
        if reason is not None:
            code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
            return pb.BatchGenerateResponse(id=request.id, failure=common_pb2.Failure(code=code, reason=reason, message="it is too long"))
        shots = [Shot(one.question, (), one.answer) for one in asked.template.examples]
        system = asked.template.system if asked.template.HasField("system") else None
        turns = Template(asked.template.name, asked.template.user, system, ()).turns(asked.question, (), shots)
        seed = asked.decoding.seed if asked.decoding.HasField("seed") else None
        key = (asked.question, tuple(shot.question for shot in shots), seed)
        self.asked[key] += 1
        self.requests.append(asked)
        usage = common_pb2.Usage(prompt_tokens=10, completion_tokens=2)
        answer = pb.AnswerResponse(text=self.says(key), model=self.answers_as, prompt_hash=prompt_hash(turns), usage=usage)
        return pb.BatchGenerateResponse(id=request.id, answer=answer)


@asynccontextmanager
async def serving(fake: FakeGenerator) -> AsyncIterator[str]:
    """Its address while it runs."""
    server = grpc.aio.server()
    generator_pb2_grpc.add_GeneratorServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)
