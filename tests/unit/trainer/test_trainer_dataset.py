"""Rows to tokens and labels: with the true tokenizer and chat templates of a tiny base."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from services.common.errors import FailedPrecondition, InvalidArgument
from services.trainer import dataset
from services.trainer.dataset import IGNORED
from services.trainer.formats import Conversation
from tests.unit.trainer.trainer_parts import FORGETFUL, MARKED, UNMARKED, make_base, turns


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
