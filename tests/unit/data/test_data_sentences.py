"""Sentences of papers and abstracts, in several scripts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.data.sentences import by_library


@pytest.mark.parametrize(
    "sentences",
    [
        ["We follow Smith et al. (2019) and use BERT.", "See Fig. 2 for details.", "The p-value was 0.05."],
        ["In E. coli, the gene is expressed.", "S. aureus was resistant (P < 0.01).", "Mr. X went to the U.S. Senate."],
        ["It works (see Sect. 3.1, Eq. 4).", "It is done BIBREF12 .", "mRNA rose, i.e. it was made."],
        ["He asked \u201cWhy?\u201d", "Nobody knew \U0001f600.", "Gr\u00f6\u00dfe z\u00e4hlt."],
        ["\u8fd9\u662f\u4e00\u4e2a\u53e5\u5b50\u3002", "\u8fd8\u6709\u5417\uff1f", "\u662f\u7684\uff01"],
        ["\u3053\u308c\u306f\u6587\u3067\u3059\u3002", "\u3053\u308c\u3082\u6587\u3067\u3059\u3002"],
        ["\u042d\u0442\u043e \u0447\u0430\u0439.", "\u0418 \u0435\u0449\u0451."],
    ],
)
def test_abbreviations_decimals_and_citations_do_not_end_a_sentence(sentences: list[str]) -> None:
    text = " ".join(sentences)
    assert [text[start:end] for start, end in by_library(text)] == sentences


@given(st.text(st.sampled_from("ab. \u00e9\u8336\u3002!?-\n\U0001f600\"'()[]1\u200b\t"), max_size=60))
def test_no_character_is_lost_or_comes_twice(text: str) -> None:
    spans = by_library(text)
    assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(text.split())
    assert all(text[start:end] == text[start:end].strip() != "" for start, end in spans)
