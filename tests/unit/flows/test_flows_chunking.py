"""From the spec's way of chunking to what is searched, shown and trained on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import yaml
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from flows.chunking import cut_by_encoder, cut_documents, searched
from flows.data.encoder import EncoderTokens
from flows.data.tokens import by_words
from flows.data_spec import ChunkSpec
from flows.errors import UserError
from flows.progress import Silent
from flows.prompting import prompt_hash
from flows.records import Document, Hit, Passage, Section
from flows.spec_file import load
from flows.stages.index import trial_index
from flows.stages.prepare import Prepared, prepare
from flows.stages.snapshot import Snapshot, _training_depth
from flows.stages.train import _examples
from flows.trial import Trial, open_trial
from flows.validate import cost, findings

HANDBOOK = "# Handbook\n\n## Tea\n\n### Green\n\n{}\n\n### Black\n\nBlack tea is number zero. It is strong.\n"


def write(folder: Path, chunk: dict[str, Any], training: dict[str, Any] | None = None, **retrieval: Any) -> Path:
    """A spec over a handbook of one section with a sentence for each question, and one more section."""
    names = [f"name{n}" for n in range(12)]
    (folder / "texts").mkdir(exist_ok=True)
    sentences = " ".join(f"Green {name} is number {n}. It is mild." for n, name in enumerate(names))
    (folder / "texts" / "book.md").write_text(HANDBOOK.format(sentences))
    rows = [
        {"question": f"Which number is {name}?", "reference": str(n), "gold": f"Green {name} is number {n}"} for n, name in enumerate(names)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {
        "name": "trial",
        "data": {"sources": [{"reader": "table", "path": "questions.jsonl"}], "corpus": "texts", "test_items": 4, "near_duplicate": 1.0},
        "retrieval": {"k": 3, "chunk": chunk, **retrieval},
        "models": {"small": {"base": "owner/base"}},
        "training": {"served": {"model": "small", "context": "retrieved", "sizes": [4], **(training or {})}},
        "arms": {"base": {"model": "small"}, "served": {"adapter": "served"}},
        "analysis": {"control": "base", "primary": {"arm": "served"}},
    }
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def trial(folder: Path, chunk: dict[str, Any], **retrieval: Any) -> Trial:
    return open_trial(load(write(folder, chunk, **retrieval)), folder / "home", Silent())


def encoder(folder: Path, words: str, longest: int) -> Path:
    """An encoder's folder, as far as counting needs it."""
    folder.mkdir(exist_ok=True)
    tokenizer = tokenizers.Tokenizer(WordLevel({"[UNK]": 0, words: 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    return folder


def hits(prepared: Prepared, item: str, *numbers: int) -> tuple[Hit, ...]:
    return tuple(Hit(item, f"book.md#{number}", rank, 1 / rank) for rank, number in enumerate(numbers, 1))


SENTENCES = {"unit": "sentences", "window": 2, "max_tokens": 20}


async def test_small_passages_are_searched_and_prompts_show_their_sections_each_once(tmp_path: Path) -> None:
    opened = trial(tmp_path, {**SENTENCES, "parent": "section", "parent_max_tokens": 40})
    prepared = await prepare(opened)
    assert [passage.text for passage in prepared.passages][3] == "Green name3 is number 3. It is mild."
    item = prepared.test[0].id
    shown = Snapshot("key", hits(prepared, item, 4, 13, 5), 3).shown(prepared, item)
    green, black = shown
    assert "Green name3 is number 3. It is mild. Green name4 is number 4. It is mild." in green.text
    assert green.id.startswith("book.md#s1[")
    assert (green.heading, black.heading) == ("Tea > Green", "Tea > Black")
    assert (black.id, black.text) == ("book.md#s2", "Black tea is number zero. It is strong.")
    assert all(name in prepared.by_id for name in prepared.gold[item]), "gold stays with what is searched"


async def test_what_was_prepared_is_read_from_the_store_with_its_parents(tmp_path: Path) -> None:
    chunk = {**SENTENCES, "parent": "document"}
    first = await prepare(trial(tmp_path, chunk))
    again = await prepare(trial(tmp_path, chunk))
    assert again.parents is not None
    assert again == replace(first, parents=again.parents)
    assert again.shown(["book.md#2", "book.md#9"]) == first.shown(["book.md#2", "book.md#9"])
    assert (await prepare(trial(tmp_path, SENTENCES))).parents is None


async def test_a_training_example_is_exactly_the_prompt_that_answering_sends(tmp_path: Path) -> None:
    opened = trial(tmp_path, {**SENTENCES, "parent": "section", "parent_max_tokens": 24})
    prepared = await prepare(opened)
    pool = prepared.pool[:4]
    found = Snapshot("key", tuple(hit for item in pool for hit in hits(prepared, item.id, 2, 3, 13)), 3)
    examples, _ = _examples(opened, prepared, found, opened.spec.training["served"], 4)
    for item, example in zip(pool, examples, strict=True):
        trained = opened.template.turns(example.question, prepared.shown(example.passages), answer=example.answer)
        asked = opened.template.turns(item.question, found.shown(prepared, item.id))
        assert prompt_hash(trained[:-1]) == prompt_hash(asked)
        assert "Black tea" in asked[0]["content"]


def test_hard_distractors_are_sought_deeper_where_hits_may_share_a_parent(tmp_path: Path) -> None:
    raft = {"context": {"raft": {"distractors": 3}}}
    depths = [_training_depth(trial(tmp_path, chunk, training=raft)) for chunk in (SENTENCES, {**SENTENCES, "parent": "section"})]
    assert depths == [8, 50]
    assert _training_depth(trial(tmp_path, {**SENTENCES, "parent": "section"})) == 3, "as many as are shown, where nothing is left out"


async def test_headings_are_searched_and_texts_stay_verbatim(tmp_path: Path) -> None:
    plain = trial(tmp_path, {})
    names = {"plain": trial_index(plain, await prepare(plain)).name}
    headed = trial(tmp_path, {"heading": True})
    prepared = await prepare(headed)
    plan = trial_index(headed, prepared)
    assert plan.passages[-1].text == "Handbook\nTea > Black\nBlack tea is number zero. It is strong."
    assert prepared.passages[-1].text == "Black tea is number zero. It is strong."
    assert [passage.id for passage in plan.passages] == [passage.id for passage in prepared.passages]
    assert plan.name != names["plain"], "other texts are another index"
    with_parents = trial(tmp_path, {"parent": "section"})
    assert trial_index(with_parents, await prepare(with_parents)).name == names["plain"], "what is shown does not change what is searched"


def test_a_title_that_opens_the_text_is_not_put_before_it_again() -> None:
    passage = Passage("d#1", "d", "Tea grows in China.", "Tea", "Green")
    assert searched([passage], ChunkSpec(heading=True))[0].text == "Green\nTea grows in China."
    assert searched([passage], ChunkSpec()) == [passage]


async def test_another_tokenizer_prepares_anew_and_the_same_does_not(tmp_path: Path) -> None:
    chunk = {"unit": "tokens", "max_tokens": 8, "count": "encoder"}
    keys = []
    for words in ("tea", "coffee", "tea"):
        folder = encoder(tmp_path / "encoder", words, 20)
        keys.append((await prepare(trial(tmp_path, chunk, encoder=str(folder)))).key)
    assert keys[0] == keys[2] != keys[1]
    # By words, an encoder has no say in how documents are cut.
    by_count = [(await prepare(trial(tmp_path, {}, encoder=name))).key for name in ("", "owner/model")]
    assert by_count[0] == by_count[1]


async def test_max_tokens_are_the_encoders_and_what_it_cuts_is_counted(tmp_path: Path) -> None:
    folder = encoder(tmp_path / "encoder", "tea", 8)
    settings: dict[str, Any] = {"encoder": str(folder)}
    prepared = await prepare(trial(tmp_path, {"unit": "tokens", "max_tokens": 8, "count": "encoder"}, **settings))
    assert max(len(passage.text.split()) for passage in prepared.passages) == 8
    assert (prepared.counts["passages_cut"], prepared.counts["encoder_max_tokens"]) == (0, 8)
    whole = await prepare(trial(tmp_path, {"unit": "document", "count": "encoder"}, **settings))
    assert (whole.counts["passages"], whole.counts["passages_cut"]) == (1, 1)
    headed = await prepare(trial(tmp_path, {"unit": "tokens", "max_tokens": 8, "count": "encoder", "heading": True}, **settings))
    assert headed.counts["passages_cut"] > 0
    counted = (await prepare(trial(tmp_path, {}, **settings))).counts
    assert (counted["passages_cut"], counted["encoder_max_tokens"]) == (None, None), "not counted is not none"


def test_longer_than_the_encoder_reads_is_counted_by_what_is_searched() -> None:
    spec = ChunkSpec(count="encoder", max_tokens=8, heading=True)
    passages = [Passage("d#1", "d", "one two", "A title", "of five"), Passage("d#2", "d", "one two")]
    assert cut_by_encoder(passages, spec, EncoderTokens(by_words, 5)) == 1
    assert cut_by_encoder(passages, spec, EncoderTokens(by_words, None)) == 0


def test_counting_by_an_encoder_that_is_not_there_is_an_error_never_a_guess() -> None:
    documents = [Document("d", "", (Section("", ("Tea.",)),))]
    with pytest.raises(UserError, match=r"retrieval\.chunk\.count: .* Set it to words"):
        list(cut_documents(documents, ChunkSpec(count="encoder"), None))


async def test_validate_names_the_key_when_the_tokenizer_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    found, prepared = await findings(trial(tmp_path, {"count": "encoder"}, encoder="./encoder"), contact=False)
    assert [(one.where, "set retrieval.chunk.count: words" in one.problem) for one in found] == [("retrieval.chunk.count", True)]
    assert prepared is None


async def test_the_cost_of_prompts_is_that_of_the_parents_shown(tmp_path: Path) -> None:
    tokens = []
    for chunk in (SENTENCES, {**SENTENCES, "parent": "section", "parent_max_tokens": 40}, {**SENTENCES, "parent": "section"}):
        opened = trial(tmp_path, chunk)
        tokens.append(cost(opened.spec, await prepare(opened)).answer_tokens)
    assert tokens[0] < tokens[1] < tokens[2]
