"""Asks a generator: one answer, one in pieces, and a batch in which one request is bad.

    pip install tunetrial-client
    python ask.py localhost:7002 base

TUNETRIAL_TOKEN holds a bearer token where the generator wants one; TUNETRIAL_CA, the CA of its certificate, turns TLS on.
"""

import argparse
import asyncio
import os
import sys

from tunetrial.client import GeneratorClient, GeneratorError, Tls, answer_request

PASSAGES = [
    ("d#1", "Bakodu was born in Tazopi."),
    ("d#2", "Lomira was born in Revuna."),
    ("d#3", "The markets of Tetali are known for their cloth."),
]


async def main(address: str, model: str) -> None:
    """One call of each kind."""
    ca = os.environ.get("TUNETRIAL_CA")
    async with GeneratorClient(address, token=os.environ.get("TUNETRIAL_TOKEN", ""), tls=Tls(ca) if ca else None) as generator:
        answer = await generator.answer(model, "Where was Lomira born?", passages=PASSAGES, max_tokens=24)
        print("answer:", answer.text)
        print("cites:", *(citation.passage_id for citation in answer.citations))

        print("streamed:", end=" ")
        async for part in generator.stream_answer(model, "Where was Bakodu born?", passages=PASSAGES, max_tokens=24):
            if isinstance(part, str):  # before it come the passages that are shown, after it the whole answer
                print(part, end="", flush=True)
        print()

        questions = {"lomira": "Where was Lomira born?", "bakodu": "Where was Bakodu born?", "blank": " "}
        requests = ((name, answer_request(model, question, passages=PASSAGES)) for name, question in questions.items())
        async for name, result in generator.batch(requests):
            if isinstance(result, GeneratorError):
                print(f"batch: {name} failed with {result.reason}: {result.message}")
            else:
                print(f"batch: {name} is {result.text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address", help="host:port of the generator")
    parser.add_argument("model", help="base, adapter or alias")
    arguments = parser.parse_args()
    try:
        asyncio.run(main(arguments.address, arguments.model))
    except GeneratorError as error:
        sys.exit(f"{error.code.name}: {error}")
