"""Rows to tokens and labels: with the true tokenizer and chat templates of a tiny base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from services.common.errors import FailedPrecondition, InvalidArgument
from services.trainer import dataset
from services.trainer.dataset import IGNORED, Conversation
from tests.unit.trainer.trainer_parts import FORGETFUL, MARKED, UNMARKED, make_base, turns, write_rows


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("bases")
    templates = {"marked": MARKED, "unmarked": UNMARKED, "forgetful": FORGETFUL}
    return {name: AutoTokenizer.from_pretrained(str(make_base(folder / name, template))) for name, template in templates.items()}


def conversation(row: dict[str, list[dict[str, str]]]) -> Conversation:
    return Conversation("data.jsonl:1", tuple(row["messages"]))


def learnt(tokenizer: Any, ids: list[int], labels: list[int]) -> str:
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    return str(tokenizer.decode([label for label in labels if label != IGNORED]))


@pytest.mark.parametrize("template", ["marked", "unmarked"])
def test_the_loss_is_on_the_answer_and_its_end_only(tokenizers: dict[str, Any], template: str) -> None:
    tokenizer = tokenizers[template]
    ids, labels = dataset.tokenize(tokenizer, conversation(turns("where is the lamp", "in the harbour")))
    assert tokenizer.decode(ids) == "<|user|>where is the lamp<|assistant|>in the harbour<|end|>"
    assert learnt(tokenizer, ids, labels) == "in the harbour<|end|>"


@pytest.mark.parametrize("template", ["marked", "unmarked"])
def test_every_assistant_turn_bears_the_loss(tokenizers: dict[str, Any], template: str) -> None:
    row = turns("where is the lamp", "in the harbour", "and the key", "by the mill")
    row["messages"].insert(0, {"role": "system", "content": "be short"})
    ids, labels = dataset.tokenize(tokenizers[template], conversation(row))
    assert learnt(tokenizers[template], ids, labels) == "in the harbour<|end|>by the mill<|end|>"


def test_markers_and_prefixes_give_the_same_labels(tokenizers: dict[str, Any]) -> None:
    told = conversation(turns("where is the lamp", "in the harbour", "and the key", ""))
    assert dataset.tokenize(tokenizers["marked"], told) == dataset.tokenize(tokenizers["unmarked"], told)


def test_a_template_that_rewrites_the_past_is_refused_for_several_turns_and_serves_for_one(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["forgetful"]
    assert learnt(tokenizer, *dataset.tokenize(tokenizer, conversation(turns("where", "there")))) == "there<|end|>"
    with pytest.raises(FailedPrecondition, match=r"data.jsonl:1: .*use a chat template with \{% generation %\} markers") as error:
        dataset.tokenize(tokenizer, conversation(turns("where", "there", "and", "here")))
    assert error.value.reason == "CHAT_TEMPLATE_NOT_A_PREFIX"


def test_what_was_cut_and_what_was_left_out_is_counted(tokenizers: dict[str, Any]) -> None:
    short, cut, lost = turns("where", "there"), turns("where", "there " * 30), turns("where is the lamp " * 30, "there")
    rows = [conversation(row) for row in (short, cut, lost, short)]
    whole = [dataset.tokenize(tokenizers["marked"], row) for row in rows]
    examples, report = dataset.prepare(tokenizers["marked"], rows, 20, "dataset_uri")
    assert [example.truncated for example in examples] == [False, True, False]
    assert [example.input_ids for example in examples] == [whole[0][0], whole[1][0][:20], whole[3][0]]
    assert (report.example_count, report.truncated_count, report.masked_count) == (4, 2, 1)
    assert report.token_count == 2 * len(whole[0][0]) + 20
    prompt = len(tokenizers["marked"].apply_chat_template(rows[1].messages[:1], add_generation_prompt=True, return_dict=False))
    assert report.answer_token_count == 2 * sum(label != IGNORED for label in whole[0][1]) + 20 - prompt


def test_a_length_that_masks_every_answer_says_what_to_change(tokenizers: dict[str, Any]) -> None:
    rows = [conversation(turns("where is the lamp " * 10, "there"))] * 3
    with pytest.raises(InvalidArgument, match=r"all 3 examples .* max_length 8: .* raise max_length") as error:
        dataset.prepare(tokenizers["marked"], rows, 8, "dataset_uri")
    assert error.value.reason == "ALL_MASKED"


GOOD = json.dumps(turns("where", "there"))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{not json", "not JSON"),
        ("[1]", 'expected {"messages"'),
        ('{"messages": []}', 'expected {"messages"'),
        ('{"messages": ["hello"]}', "message 0 is no object"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "role 'robot'"),
        ('{"messages": [{"role": "user"}]}', "message 0 has no text"),
        ('{"messages": [{"role": "user", "content": "where"}]}', "the last message must be the assistant's"),
    ],
)
def test_a_broken_row_is_named_by_file_line_and_reason(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(InvalidArgument) as error:
        list(dataset.read(path, "spec.dataset_uri"))
    assert f"{path}:3: " in error.value.message
    assert why in error.value.message
    assert "(1 rows read)" in error.value.message
    assert error.value.metadata["field"] == "spec.dataset_uri"


def test_bytes_that_are_no_text_are_a_broken_row(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"messages": "\xe4"}\n')
    with pytest.raises(InvalidArgument, match=":1: not JSON"):
        list(dataset.read(path, "spec.dataset_uri"))


def test_an_empty_file_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="holds no rows"):
        list(dataset.read(write_rows(tmp_path / "empty.jsonl", []), "spec.dataset_uri"))
    with pytest.raises(InvalidArgument, match="No such file"):
        list(dataset.read(tmp_path / "missing.jsonl", "spec.dataset_uri"))
