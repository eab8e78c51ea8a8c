"""What the generator takes from a vLLM behind it: tokens a second and time to the first token, against the openai client alone.

    python -m benchmarks.vllm [--json] [--callers 1,8,32] [--tokens 64] [--rounds 5] [--hidden 512] [--layers 8]

One real vLLM on the CPU with a base of random weights and two LoRA adapters, one thread; the generator is a process of its own, the callers
are this one. Both ways send the same prompts of some 200 tokens to the same adapters, greedy, in turns, streamed and whole; both must bring
the same texts. Straight to vLLM means `openai.AsyncOpenAI` with the tokens of the prompt given; the generator is sent the conversation and
makes the tokens itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from tunetrial.common.v1 import common_pb2
from tunetrial.generator.v1 import generator_pb2, generator_pb2_grpc

from benchmarks.vllm.processes import SHAPE, generator
from tests.real.vllm_server import VllmServer

ADAPTERS = ("one", "two")
_PASSAGE = "The keeper of the harbour was born in the old town by the river, and led the institute since the second study . "


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as either way needs it."""

    adapter: str
    text: str
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Came:
    """A text, when its first piece came and how many tokens it has."""

    text: str
    first_s: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Figures:
    """Of both ways with so many callers; ratios and differences are medians of rounds, with their range."""

    callers: int
    streamed: bool
    straight_per_s: float
    ours_per_s: float
    ratio: float
    ratio_from: float
    ratio_to: float
    straight_first_ms: float
    first_added_ms: float
    """What the generator adds to the first token at the median of a round, median of rounds."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--callers", default="1,8,32")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    return parser.parse_args()


def make_models(folder: Path, hidden: int, layers: int) -> Path:
    """A base with random weights and the quickstart's tokenizer, and adapters of rank 8."""
    torch.manual_seed(0)
    shape: Any = AutoConfig.from_pretrained(SHAPE)
    shape.hidden_size, shape.num_hidden_layers, shape.intermediate_size = hidden, layers, 3 * hidden
    shape.num_attention_heads = shape.num_key_value_heads = hidden // 64
    shape.head_dim = 64
    base = folder / "base"
    AutoModelForCausalLM.from_config(shape, dtype=torch.float32).save_pretrained(str(base))
    AutoTokenizer.from_pretrained(SHAPE).save_pretrained(str(base))
    for number, name in enumerate(ADAPTERS, 1):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        torch.manual_seed(number)
        get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False)).save_pretrained(
            str(folder / name)
        )
    return base


def questions(base: Path, round_: int, count: int) -> list[Asked]:
    """Requests of a round: no two of them, and none of another round, share more than a few tokens at their beginning."""
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    found = []
    for number in range(count):
        text = f"{round_} {number} {_PASSAGE * 6}Who was born in the old town?"
        ids = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True)["input_ids"]
        found.append(Asked(ADAPTERS[number % len(ADAPTERS)], text, list(ids)))
    return found


class Straight:
    """The openai client alone."""

    def __init__(self, server: VllmServer, tokens: int) -> None:
        self._client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=600)
        self._tokens = tokens

    async def ask(self, asked: Asked, streamed: bool) -> Came:
        """One text."""
        began = time.perf_counter()
        request: dict[str, Any] = {"model": asked.adapter, "prompt": asked.tokens, "max_tokens": self._tokens, "temperature": 0}
        if not streamed:
            made = await self._client.completions.create(**request)
            return Came(made.choices[0].text, time.perf_counter() - began, made.usage.completion_tokens)
        texts, first, count = [], 0.0, 0
        async for chunk in await self._client.completions.create(**request, stream=True, stream_options={"include_usage": True}):
            first = first or time.perf_counter() - began
            texts += [choice.text for choice in chunk.choices]
            count = chunk.usage.completion_tokens if chunk.usage else count
        return Came("".join(texts), first, count)


class Ours:
    """The generator over gRPC."""

    def __init__(self, channel: grpc.aio.Channel, tokens: int) -> None:
        self._stub: generator_pb2_grpc.GeneratorServiceAsyncStub = generator_pb2_grpc.GeneratorServiceStub(channel)
        self._tokens = tokens

    async def load(self, folder: Path) -> None:
        """Both adapters."""
        for name in ADAPTERS:
            await self._stub.LoadAdapter(generator_pb2.LoadAdapterRequest(name=name, uri=str(folder / name)), wait_for_ready=True)

    async def ask(self, asked: Asked, streamed: bool) -> Came:
        """One text."""
        began = time.perf_counter()
        turn = common_pb2.Message(role=common_pb2.ROLE_USER, content=asked.text)
        prompt = generator_pb2.Prompt(conversation=generator_pb2.Conversation(messages=[turn]))
        request = generator_pb2.GenerateRequest(
            model=asked.adapter, prompt=prompt, decoding=generator_pb2.Decoding(max_tokens=self._tokens)
        )
        if not streamed:
            made = await self._stub.Generate(request)
            return Came(made.text, time.perf_counter() - began, made.usage.completion_tokens)
        texts, first, count = [], 0.0, 0
        async for part in self._stub.StreamGenerate(generator_pb2.StreamGenerateRequest(generate=request)):
            first = first or time.perf_counter() - began
            if part.WhichOneof("part") == "text":
                texts.append(part.text)
            else:
                count = part.done.usage.completion_tokens
        return Came("".join(texts), first, count)


async def together(ask: Callable[[Asked, bool], Awaitable[Came]], work: list[Asked], streamed: bool) -> tuple[list[Came], float]:
    """All at once, and how long that took."""
    began = time.perf_counter()
    came = list(await asyncio.gather(*(ask(asked, streamed) for asked in work)))
    return came, time.perf_counter() - began


async def compare(base: Path, straight: Straight, ours: Ours, callers: int, rounds: int, *, streamed: bool) -> Figures:
    """Rounds in turns; the first warms up. Each way gets prompts of its own, so that neither finds the other's in vLLM's cache."""
    rates: list[tuple[float, float]] = []
    firsts: list[tuple[float, float]] = []
    for number in range(rounds + 1):
        ways = [(0, straight.ask), (1, ours.ask)]
        rate, first = [0.0, 0.0], [0.0, 0.0]
        for place, ask in ways if number % 2 else reversed(ways):
            came, seconds = await together(ask, questions(base, 2 * number + place, callers), streamed)
            rate[place] = sum(one.tokens for one in came) / seconds
            first[place] = statistics.median(one.first_s for one in came) * 1e3
        if number:
            rates.append((rate[0], rate[1]))
            firsts.append((first[0], first[1]))
    ratios = [mine / theirs for theirs, mine in rates]
    return Figures(
        callers,
        streamed,
        statistics.median(theirs for theirs, _ in rates),
        statistics.median(mine for _, mine in rates),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(theirs for theirs, _ in firsts),
        statistics.median(mine - theirs for theirs, mine in firsts),
    )


async def measure(given: argparse.Namespace, base: Path, server: VllmServer, folder: Path, address: str) -> list[Figures]:
    """All figures."""
    straight = Straight(server, given.tokens)
    async with grpc.aio.insecure_channel(address) as channel:
        ours = Ours(channel, given.tokens)
        await ours.load(folder)
        (same,) = questions(base, 10_000, 1)
        texts = {(await way.ask(same, streamed)).text for way in (straight, ours) for streamed in (True, False)}
        if len(texts) != 1:
            raise SystemExit(f"both ways must bring the same text: {texts}")
        counts = [int(count) for count in given.callers.split(",")]
        return [
            await compare(base, straight, ours, count, given.rounds, streamed=streamed) for count in counts for streamed in (False, True)
        ]


def main() -> None:
    """Prints the figures."""
    given = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = make_models(folder, given.hidden, given.layers)
        server = VllmServer(base, folder, name="base")
        server.start()
        try:
            with generator("base", base, server, folder) as address:
                found = asyncio.run(measure(given, base, server, folder, address))
        finally:
            server.kill()
    if given.json:
        print(json.dumps([asdict(one) for one in found]))
        return
    print(f"base of {given.layers} layers of {given.hidden}, {given.tokens} tokens a text, {given.rounds} rounds")
    print("callers  way       straight tokens/s  ours tokens/s  ratio                first token ms  added ms")
    for one in found:
        way = "streamed" if one.streamed else "whole"
        ratio = f"{one.ratio:.3f} [{one.ratio_from:.3f}, {one.ratio_to:.3f}]"
        print(f"{one.callers:7}  {way:8}  {one.straight_per_s:17.0f}  {one.ours_per_s:13.0f}  {ratio:19}", end="")
        print(f"  {one.straight_first_ms:14.1f}  {one.first_added_ms:8.1f}")


main()
