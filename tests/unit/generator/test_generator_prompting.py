"""Rendering, hashes, abstentions and citations."""

from __future__ import annotations

import hashlib

import pytest

from services.common.errors import InvalidArgument
from services.generator.domain import Passage, Turn
from services.generator.prompting import Example, Template, canonical, marked, prompt_hash, verbatim

PASSAGES = (
    Passage("a", "The bridge of Ormsby was built by Ada Lund in 1901.", title="Bridges", heading="History"),
    Passage("b", "Ada   LUND lived by the river."),
    Passage("c", "It took Adam Lundgren 21 years."),
)


def test_examples_become_earlier_turns_after_the_system_turn() -> None:
    template = Template(
        "t", "{% for p in passages %}{{ p.id }} {% endfor %}{{ question }}", "Be brief.", (Example("q1", PASSAGES[:1], "a1"),)
    )
    assert template.render("q2", PASSAGES[1:]) == (
        Turn("system", "Be brief."),
        Turn("user", "a q1"),
        Turn("assistant", "a1"),
        Turn("user", "b c q2"),
    )


def test_a_template_gives_exactly_its_own_text_with_nothing_trimmed_or_escaped() -> None:
    template = Template("t", "  {% if passages %}\nP{% endif %}\n{{ question }} <&>\n")
    assert template.render("a < b", ())[0].content == "  \na < b <&>\n"


def test_a_template_sees_id_text_title_and_heading_and_nothing_else() -> None:
    template = Template("t", "{% for p in passages %}{{ p.id }}|{{ p.title }}|{{ p.heading }}|{{ p.text[:3] }}{% endfor %}")
    assert template.render("", PASSAGES[:1])[0].content == "a|Bridges|History|The"
    for text in (
        "{{ p }}",
        "{{ passages[0].document.x }}",
        "{{ 1 / 0 }}",
        "{% bad %}",
        "{{ question.__class__.__base__.__subclasses__() }}",
    ):
        with pytest.raises(InvalidArgument) as error:
            Template("t", text).render("q", PASSAGES)
        assert error.value.reason == "TEMPLATE_INVALID"
        assert error.value.metadata["field"] == "template.user"


def test_the_hash_is_of_canonical_json_for_turns_and_of_the_text_itself_otherwise() -> None:
    turns = (Turn("system", "sé"), Turn("user", 'a "b"\n'))
    assert canonical(turns) == '[{"content":"sé","role":"system"},{"content":"a \\"b\\"\\n","role":"user"}]'
    assert prompt_hash(turns) == hashlib.sha256(canonical(turns).encode()).hexdigest()
    assert prompt_hash("é") == hashlib.sha256("é".encode()).hexdigest()


@pytest.mark.parametrize(
    ("answer", "abstains"),
    [("Unanswerable", True), (" i DON'T know. ", True), ("unanswerable..", False), ("", False), ("unanswerable by me", False)],
)
def test_abstentions_are_compared_without_case_space_and_final_full_stop(answer: str, abstains: bool) -> None:
    assert Template("t", "", abstentions=("unanswerable", "I don't know.")).abstains(answer) is abstains


def test_numbers_in_brackets_cite_the_passages_shown_in_their_order() -> None:
    assert marked("Lund [2], and more [3, 1][9] [x] [0].", PASSAGES) == ("a", "b", "c")
    assert marked("in 1901 [4]", PASSAGES) == ()
    assert marked("[2] [2]", PASSAGES) == ("b",)


def test_an_answer_word_for_word_cites_whatever_holds_it_as_whole_words() -> None:
    assert verbatim("ada lund.", PASSAGES) == ("a", "b")
    assert verbatim("21 years", PASSAGES) == ("c",)
    assert verbatim("1", PASSAGES) == ()


@pytest.mark.parametrize("answer", ["yes", "No.", "", " ", "."])
def test_trivial_answers_cite_nothing(answer: str) -> None:
    assert verbatim(answer, (Passage("a", "Yes, no, maybe. ."),)) == ()
