"""How much faster the generator is than one-by-one generation, and what gRPC adds to a call.

    python benchmarks/generator.py [--json] [--base FOLDER] [--callers 16] [--tokens 64] [--rounds 3]

Ratios of one run, on whatever machine this is; nothing is asserted but that both ways give the same greedy texts. The generator is a
process of its own, called over gRPC by as many callers at once as `--callers`, over four adapters; the other way is plain
`model.generate` of transformers with PEFT's `set_adapter`, one request after the other, in this process. Both use one thread. The
base has the quickstart's shape and tokenizer; it and the adapters have random weights, so texts make no sense, cost what trained ones
cost, and run to their limit instead of ending after a name (`--base` takes a trained one: short texts are mostly prompt, which batching
helps less). What gRPC adds is the median difference between
the same call of one token made over the wire and made on the same code in this process, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "protos")]

import grpc  # noqa: E402
import structlog  # noqa: E402
import torch  # noqa: E402
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from tunetrial.common.v1 import common_pb2  # noqa: E402
from tunetrial.generator.v1 import generator_pb2, generator_pb2_grpc  # noqa: E402

from services.generator.catalog import Catalog  # noqa: E402
from services.generator.domain import Decoding, Turn  # noqa: E402
from services.generator.generator import Call, Generator, Manner  # noqa: E402
from services.generator.sqlalchemy_models import SqlAlchemyModels  # noqa: E402
from services.generator.transformers_engine import TransformersEngine  # noqa: E402

ADAPTERS = 4
_QUESTIONS = (
    "Where was the tall keeper of the harbour born?",
    "Who leads the institute, and since when?",
    "Which river runs past the old town, and how long is it?",
    "What did the second study measure?",
)


def make_base(shape: Path, folder: Path) -> Path:
    """A model of the same shape with random weights."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shape))
    model.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(shape).save_pretrained(str(folder))
    return folder


def make_adapters(base: Path, folder: Path) -> list[Path]:
    """Random LoRA adapters of rank 16 on all linear layers."""
    paths = []
    for number in range(ADAPTERS):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        torch.manual_seed(number)
        tuned = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False))
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                weight.data.mul_(0.25)
        paths.append(folder / str(number))
        tuned.save_pretrained(str(paths[-1]))
    return paths


def jobs(callers: int) -> list[tuple[int, str]]:
    """An adapter and a question for each caller."""
    return [(number % ADAPTERS, f"{_QUESTIONS[number // ADAPTERS % len(_QUESTIONS)]} ({number})") for number in range(callers)]


class Plain:
    """transformers and PEFT as one would use them by hand."""

    def __init__(self, base: Path, adapters: list[Path]) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self._model: Any = PeftModel.from_pretrained(model, adapters[0], adapter_name="0")
        for number, folder in enumerate(adapters[1:], 1):
            self._model.load_adapter(folder, str(number))
        self._model.eval()

    def run(self, work: list[tuple[int, str]], tokens: int) -> tuple[list[str], int, float]:
        """Texts, tokens generated, seconds."""
        texts, count, started = [], 0, time.perf_counter()
        for adapter, question in work:
            ids = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            self._model.set_adapter(str(adapter))
            with torch.inference_mode():
                made = self._model.generate(**ids, max_new_tokens=tokens, do_sample=False)[0, ids["input_ids"].shape[1] :]
            texts.append(self._tokenizer.decode(made, skip_special_tokens=True))
            count += len(made)
        return texts, count, time.perf_counter() - started


@contextmanager
def service(base: Path, folder: Path) -> Iterator[str]:
    """The generator as a process; its address."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path[:2]),
        "TUNETRIAL_MODELS": json.dumps({"base": str(base)}),
        "TUNETRIAL_PORT": "0",
        "TUNETRIAL_PORT_FILE": str(folder / "port"),
        "TUNETRIAL_DATA_DIR": str(folder / "data"),
        "TUNETRIAL_URI_ROOTS": str(folder),
        "TUNETRIAL_LOG_LEVEL": "WARNING",
    }
    child = subprocess.Popen([sys.executable, "-m", "services.generator"], env=environment, cwd=ROOT)
    try:
        while not (folder / "port").exists():
            if child.poll() is not None:
                raise SystemExit("the generator did not start")
            time.sleep(0.1)
        yield f"127.0.0.1:{(folder / 'port').read_text()}"
    finally:
        child.terminate()
        child.wait()


def request(adapter: int, question: str, tokens: int) -> generator_pb2.GenerateRequest:
    """One greedy request."""
    turn = common_pb2.Message(role=common_pb2.ROLE_USER, content=question)
    prompt = generator_pb2.Prompt(conversation=generator_pb2.Conversation(messages=[turn]))
    return generator_pb2.GenerateRequest(model=f"adapter-{adapter}", prompt=prompt, decoding=generator_pb2.Decoding(max_tokens=tokens))


async def batched(
    stub: generator_pb2_grpc.GeneratorServiceAsyncStub, work: list[tuple[int, str]], tokens: int
) -> tuple[list[str], int, float]:
    """The same work by callers at once: texts, tokens, seconds."""
    started = time.perf_counter()
    responses = await asyncio.gather(*(stub.Generate(request(adapter, question, tokens)) for adapter, question in work))
    seconds = time.perf_counter() - started
    return [response.text for response in responses], sum(response.usage.completion_tokens for response in responses), seconds


async def overhead(
    stub: generator_pb2_grpc.GeneratorServiceAsyncStub, base: Path, adapters: list[Path], folder: Path, calls: int
) -> tuple[float, float, float]:
    """Median milliseconds of a call of one token over gRPC, of the same in this process, and of their differences."""
    engine, models = TransformersEngine("base", str(base)), SqlAlchemyModels(folder / "own")
    catalog = Catalog({"base": engine}, models, uri_roots=str(folder), tolerance=0.05, queue_limit=256)
    await catalog.prepare()
    await catalog.load("adapter-0", str(adapters[0]), "")
    generator = Generator(catalog, None, 4096)
    wire: list[float] = []
    direct: list[float] = []
    for number in range(calls + 5):
        question = f"{_QUESTIONS[number % len(_QUESTIONS)]} ({number})"
        started = time.perf_counter()
        await stub.Generate(request(0, question, 1))
        between = time.perf_counter()
        async for _ in generator.generate(Call("adapter-0", (Turn("user", question),), Decoding(max_tokens=1)), Manner("here")):
            pass
        wire.append(between - started)
        direct.append(time.perf_counter() - between)
    await catalog.close()
    # The first calls warm both up.
    added = statistics.median(ours - theirs for ours, theirs in zip(wire[5:], direct[5:], strict=True))
    return statistics.median(wire[5:]) * 1e3, statistics.median(direct[5:]) * 1e3, added * 1e3


async def measure(trained: Path | None, callers: int, tokens: int, rounds: int, calls: int) -> dict[str, Any]:
    """All figures of one run."""
    torch.set_num_threads(1)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = trained or make_base(ROOT / "examples" / "quickstart" / "base", folder / "base")
        adapters = make_adapters(base, folder)
        plain, work = Plain(base, adapters), jobs(callers)
        with service(base, folder) as address:
            async with grpc.aio.insecure_channel(address) as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)
                async for state in health.Watch(health_pb2.HealthCheckRequest(service="tunetrial.generator.v1.GeneratorService")):
                    if state.status == health_pb2.HealthCheckResponse.SERVING:
                        break
                stub: generator_pb2_grpc.GeneratorServiceAsyncStub = generator_pb2_grpc.GeneratorServiceStub(channel)
                for number, path in enumerate(adapters):
                    await stub.LoadAdapter(generator_pb2.LoadAdapterRequest(name=f"adapter-{number}", uri=str(path)))
                await batched(stub, work, 4)
                plain.run(work[:ADAPTERS], 4)
                one_by_one, together, same, length = [], [], True, 0.0
                for _ in range(rounds):
                    texts, count, seconds = plain.run(work, tokens)
                    one_by_one.append(count / seconds)
                    length = count / len(work)
                    other_texts, count, seconds = await batched(stub, work, tokens)
                    together.append(count / seconds)
                    same = same and texts == other_texts
                wire_ms, direct_ms, added_ms = await overhead(stub, base, adapters, folder, calls)
    return {
        "callers": callers,
        "adapters": ADAPTERS,
        "tokens_per_request": tokens,
        "mean_tokens_of_a_text": length,
        "rounds": rounds,
        "plain_tokens_per_s": statistics.median(one_by_one),
        "generator_tokens_per_s": statistics.median(together),
        "ratio": statistics.median(ours / theirs for ours, theirs in zip(together, one_by_one, strict=True)),
        "same_texts": same,
        "call_over_grpc_ms": wire_ms,
        "call_in_process_ms": direct_ms,
        "grpc_overhead_ms": added_ms,
    }


def main() -> None:
    """Measures and prints; exits with 1 when the two ways give different texts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--base", type=Path, help="a trained base instead of random weights")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=200, help="calls for the overhead of gRPC")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = asyncio.run(measure(options.base, options.callers, options.tokens, options.rounds, options.calls))
    if options.json:
        print(json.dumps(figures))
    else:
        length = f"up to {figures['tokens_per_request']} tokens each, {figures['mean_tokens_of_a_text']:.0f} on average"
        print(f"{figures['callers']} callers over {ADAPTERS} adapters, {length}")
        print(f"  plain model.generate, one by one  {figures['plain_tokens_per_s']:8.1f} tokens/s")
        print(f"  generator over gRPC               {figures['generator_tokens_per_s']:8.1f} tokens/s")
        print(f"  ratio                             {figures['ratio']:8.2f} (target: at least 3)")
        print(f"  greedy texts                      {'the same' if figures['same_texts'] else 'DIFFERENT'}")
        print("a call of one token, medians")
        print(f"  over gRPC                         {figures['call_over_grpc_ms']:8.2f} ms")
        print(f"  in process                        {figures['call_in_process_ms']:8.2f} ms")
        print(f"  gRPC adds                         {figures['grpc_overhead_ms']:8.2f} ms (target: at most 3)")
    raise SystemExit(0 if figures["same_texts"] else 1)


if __name__ == "__main__":
    main()
