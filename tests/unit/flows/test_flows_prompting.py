"""Training examples and prompts are rendered alike, and the hash says so."""

import hashlib
import json
from pathlib import Path

import pytest

from flows.errors import UserError
from flows.prompting import Shot, load_template, prompt_hash
from flows.records import Passage
from flows.spec import PromptSpec

PASSAGES = (Passage("d#1", "d", "Lomira targets Bakod.", "Drugs"), Passage("d#2", "d", "Two & three."))


def test_the_plain_template_lists_passages_and_asks() -> None:
    template = load_template(PromptSpec(), Path())
    assert template.turns("Where?", PASSAGES) == [{"role": "user", "content": "- Lomira targets Bakod.\n- Two & three.\nQuestion: Where?"}]
    assert template.turns("Where?", ()) == [{"role": "user", "content": "Question: Where?"}]


def test_the_numbered_template_has_a_system_turn_and_titles() -> None:
    system, user = load_template(PromptSpec(template="numbered/v1"), Path()).turns("Where?", PASSAGES)
    assert system["role"] == "system"
    assert user["content"] == "[1] Drugs: Lomira targets Bakod.\n\n[2] Two & three.\n\nQuestion: Where?"


def test_a_training_example_is_the_prompt_and_its_answer() -> None:
    template = load_template(PromptSpec(), Path())
    prompt = template.turns("Where?", PASSAGES)
    assert template.turns("Where?", PASSAGES, answer="There.") == [*prompt, {"role": "assistant", "content": "There."}]


def test_worked_examples_come_before_the_question_and_reach_the_generator() -> None:
    template = load_template(PromptSpec(), Path())
    shots = (Shot("Who?", PASSAGES[:1], "She."),)
    assert [turn["role"] for turn in template.turns("Where?", (), shots)] == ["user", "assistant", "user"]
    assert template.message(shots).examples[0].passages[0].id == "d#1"


def test_the_hash_is_the_one_that_the_contract_describes() -> None:
    turns = [{"role": "user", "content": "Größe?"}]
    expected = json.dumps(turns, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()
    assert prompt_hash(turns) == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize("text", ["{{ question", "{{ answer }}", "{% for p in passages %}"])
def test_a_template_that_does_not_render_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.jinja").write_text(text)
    with pytest.raises(UserError, match="does not render"):
        load_template(PromptSpec(template="own.jinja"), tmp_path)


def test_an_unknown_template_names_those_that_ship(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="plain/v1, numbered/v1"):
        load_template(PromptSpec(template="plane/v1"), tmp_path)
