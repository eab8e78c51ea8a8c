"""Specs from before the other units came keep their passages and ids: these digests were taken from the code of that time."""

import hashlib
import json
import random

import pytest

from flows.data.chunk import Chunking, chunk
from flows.records import Document, Section

_SNIPPETS = (
    *("word", "Capital", "3.5", "et al.", "Fig. 2", "x-y-z", "(see", "[12].", "end.", "Why?", "No!", "He said.", "é", "😀", "\u200b"),
    *(
        "\u8336\u3002",
        "\u8336\u306f",
        "\u3053\u308c\u3067\u3059\uff01",
        "\u201cQuote.\u201d",
        "don't",
        "https://a.b/c?d=e",
        "...",
        "a\u00a0b",
        "\tx\n",
    ),
)


def corpus() -> list[Document]:
    """The same 60 documents every time, with empty paragraphs and sections among them."""
    drawn = random.Random(7)  # noqa: S311  a fixed sequence is the point
    return [
        Document(
            f"d{number}",
            "Title",
            tuple(
                Section(f"h{place}", tuple(" ".join(drawn.choices(_SNIPPETS, k=drawn.randrange(40))) for _ in range(drawn.randrange(4))))
                for place in range(drawn.randrange(4))
            ),
        )
        for number in range(60)
    ]


@pytest.mark.parametrize(
    ("chunking", "count", "digest"),
    [
        (Chunking(), 127, "a49d205b242bd4e7dd2f64486b4f9f0a5749129550bc21e04cbb616bb7edef11"),
        (Chunking("paragraph", 12), 673, "3b002131ea356e515fd70c82a3de9fac5043bcdaee3a9210c007a24e00a9da78"),
        (Chunking("paragraph", 3), 2450, "f01d6969dee463032c4418c8c1d872770eff93f4c19c8a6f58176c56d40dd2b7"),
        (Chunking("tokens"), 70, "0b1797a1a21e9a522e006a3a6eef8aec591271e4807eb7c3c1003a39228dae53"),
        (Chunking("tokens", 20, 5), 470, "593fe75d2db785312b5114e3f82549ba7d4780f22cc8df6d04ecab97779685e8"),
        (Chunking("tokens", 4, 3), 3605, "ca6009c9659c42791c1d9f80872732d707e6c21b12216051e28bdfbab7455cac"),
    ],
    ids=str,
)
def test_an_old_spec_gives_the_same_passages_byte_for_byte(chunking: Chunking, count: int, digest: str) -> None:
    passages = chunk(corpus(), chunking)
    rows = [[passage.id, passage.document, passage.text, passage.title, passage.heading] for passage in passages]
    found = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    assert (len(passages), found) == (count, digest)
