"""Memory of the generator with four adapters, against one base and its adapters loaded by transformers and PEFT.

    python benchmarks/generator_memory.py [--json] [--hidden 1024] [--layers 12]

Both are processes of their own, with weights in float32, measured (resident memory) after the same greedy requests to every adapter, one by
one. The base has random weights and the quickstart's tokenizer; it is large enough that libraries do not decide.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "protos")]

import grpc  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from tunetrial.generator.v1 import generator_pb2, generator_pb2_grpc  # noqa: E402

from benchmarks import generator as parts  # noqa: E402

SHAPE = ROOT / "examples" / "quickstart" / "base"
_TOKENS = 16


def make_base(folder: Path, hidden: int, layers: int) -> Path:
    """A base with random weights."""
    shape: Any = AutoConfig.from_pretrained(SHAPE)
    shape.hidden_size, shape.num_hidden_layers, shape.intermediate_size = hidden, layers, 4 * hidden
    shape.num_attention_heads = shape.num_key_value_heads = hidden // 64
    shape.head_dim = 64
    AutoModelForCausalLM.from_config(shape).float().save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(SHAPE).save_pretrained(str(folder))
    return folder


def rss_mib(pid: int | str) -> float:
    """Resident memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def plain(folder: Path) -> None:
    """What the other process does: prints its memory."""
    work = parts.jobs(parts.ADAPTERS)
    way = parts.Plain(folder / "base", [folder / str(number) for number in range(parts.ADAPTERS)])
    way.run(work, _TOKENS)
    print(rss_mib("self"))


async def ours(folder: Path) -> float:
    """Memory of the generator after the same."""
    with parts.service(folder / "base", folder) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: generator_pb2_grpc.GeneratorServiceAsyncStub = generator_pb2_grpc.GeneratorServiceStub(channel)
            for number in range(parts.ADAPTERS):
                request = generator_pb2.LoadAdapterRequest(name=f"adapter-{number}", uri=str(folder / str(number)))
                while True:
                    try:
                        await stub.LoadAdapter(request, wait_for_ready=True)
                        break
                    except grpc.aio.AioRpcError as error:
                        if error.code() is not grpc.StatusCode.UNAVAILABLE:
                            raise
                        await asyncio.sleep(1)
            for adapter, question in parts.jobs(parts.ADAPTERS):
                await stub.Generate(parts.request(adapter, question, _TOKENS))
            return await asyncio.to_thread(_of_child)


def _of_child() -> float:
    found = subprocess.run(("pgrep", "-f", "services.generator"), capture_output=True, text=True, check=True).stdout.split()
    return max(map(rss_mib, found))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain is not None:
        plain(options.plain)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts.make_adapters(make_base(folder / "base", options.hidden, options.layers), folder)
        weights = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 2**20
        command = (sys.executable, __file__, "--plain", str(folder))
        theirs = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        mine = asyncio.run(ours(folder))
    figures = {"weights_mib": weights, "plain_mib": theirs, "generator_mib": mine, "ratio": mine / theirs}
    if options.json:
        print(json.dumps(figures))
        return
    print(f"weights of base and {parts.ADAPTERS} adapters  {weights:8.0f} MiB")
    print(f"transformers and PEFT             {theirs:8.0f} MiB")
    print(f"the generator                     {mine:8.0f} MiB, {mine / theirs:.2f} of it (target: at most 1.1)")


if __name__ == "__main__":
    main()
