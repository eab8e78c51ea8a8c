"""Answers, names and aliases over an engine that only pretends: the rules of the domain, without a model."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from generator_pretender import Pretender, catalog_of

from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from services.generator.domain import (
    Decoding,
    Passage,
    Retrieval,
    State,
)
from services.generator.generator import Answer, Call, Citation, Generator, Manner, Overflow, Question, Shown, Text
from services.generator.prompting import Template

PASSAGES = tuple(Passage(str(number), f"passage {number} " + "x" * 10) for number in range(5))
"""20 characters each, which the engine below counts as tokens."""
TEMPLATE = Template("t", "{% for p in passages %}{{ p.text }}{% endfor %}{{ question }}", abstentions=("unanswerable",))


def ask(text: str = "q", **changes: Any) -> Question:
    fields: dict[str, Any] = {
        "model": "base",
        "text": text,
        "source": PASSAGES,
        "template": TEMPLATE,
        "decoding": Decoding(max_tokens=10),
        "overflow": Overflow.ERROR,
    }
    return Question(**{**fields, **changes})


async def answered(engine: Pretender, question: Question, stream: bool = False) -> tuple[list[Any], Answer]:
    generator = Generator(catalog_of(engine), None, 4096)
    *pieces, last = [piece async for piece in generator.answer(question, Manner("me", stream=stream))]
    assert isinstance(last, Answer)
    return pieces, last


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


async def test_passages_are_left_out_from_the_last_on_until_prompt_and_answer_fit() -> None:
    engine = Pretender()
    _, whole = await answered(engine, ask(source=PASSAGES[:4], overflow=Overflow.CUT_PASSAGES))
    assert (len(whole.shown), whole.cut) == (4, ())
    # 4 passages are 80 tokens, a question of 15 makes 95, and 10 are kept for the answer.
    _, cut = await answered(engine, ask("q" * 15, overflow=Overflow.CUT_PASSAGES))
    assert [hit.passage.id for hit in cut.shown] == ["0", "1", "2"]
    assert cut.cut == ("3", "4")
    assert len(engine.work[-1].encoded.tokens) == 75


@pytest.mark.parametrize(("wanted", "shown"), [(None, 3), (10, 4), (25, 3), (50, 2), (4000, 2)])
async def test_the_room_kept_for_the_answer_is_what_was_asked_for_up_to_half_of_the_context(wanted: int | None, shown: int) -> None:
    _, answer = await answered(Pretender(), ask(decoding=Decoding(max_tokens=wanted), overflow=Overflow.CUT_PASSAGES))
    assert len(answer.shown) == shown


async def test_without_leave_to_cut_a_prompt_too_long_is_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidArgument) as error:
        await answered(Pretender(), ask())
    assert error.value.reason == "PROMPT_TOO_LONG"
    assert (error.value.metadata["prompt_tokens"], error.value.metadata["limit_tokens"]) == ("101", "99")


async def test_a_question_that_is_too_long_by_itself_is_refused_even_with_leave_to_cut() -> None:
    with pytest.raises(InvalidArgument) as error:
        await answered(Pretender(), ask("q" * 100, overflow=Overflow.CUT_PASSAGES))
    assert error.value.reason == "PROMPT_TOO_LONG"


async def test_the_limit_of_tokens_is_lowered_to_what_the_context_leaves() -> None:
    engine = Pretender()
    await answered(engine, ask("q" * 60, source=None, decoding=Decoding()))
    assert engine.work[-1].max_tokens == 40


async def test_pieces_of_an_answer_are_trimmed_like_the_whole() -> None:
    pieces, answer = await answered(Pretender("  ", "\n Ada", " ", "Lund  ", "\n"), ask(source=None), stream=True)
    assert isinstance(pieces[0], Shown)
    assert pieces[1:] == ["Ada", " Lund"]
    assert answer.text == "Ada Lund" == "".join(pieces[1:])


async def test_marked_passages_are_cited_before_passages_that_hold_the_answer() -> None:
    _, both = await answered(Pretender("passage 1 [3]"), ask(source=PASSAGES[:4]))
    assert both.citations == (Citation("2", marked=True),)
    _, word = await answered(Pretender("passage 1"), ask(source=PASSAGES[:4]))
    assert word.citations == (Citation("1", marked=False),)


async def test_an_abstention_is_told_and_cites_nothing() -> None:
    _, answer = await answered(Pretender(" Unanswerable."), ask(source=(Passage("a", "this is unanswerable"),)))
    assert answer.abstained
    assert answer.citations == ()


async def test_a_question_for_an_index_without_a_retriever_is_unavailable() -> None:
    with pytest.raises(Unavailable) as error:
        await answered(Pretender(), ask(source=Retrieval("index", b"")))
    assert error.value.reason == "RETRIEVER_UNAVAILABLE"


async def test_a_blank_question_is_refused() -> None:
    with pytest.raises(InvalidArgument) as error:
        await answered(Pretender(), ask(" \n"))
    assert error.value.reason == "QUESTION_INVALID"


async def test_an_adapter_answers_only_once_it_is_proven(folder: Path) -> None:
    engine = Pretender()
    catalog = catalog_of(engine, str(folder))
    model = await catalog.load("mine", str(folder), "")
    assert model.state is State.VERIFIED
    pieces = [piece async for piece in Generator(catalog, None, 10).generate(Call("mine", "hello", Decoding()), Manner("me"))]
    assert isinstance(pieces[-1], Text)
    assert (pieces[-1].model, engine.work[-1].adapter) == ("mine", "mine")
    engine.scores["mine"] = engine.scores[None]
    assert (await catalog.verify("mine")).state is State.REJECTED
    with pytest.raises(FailedPrecondition) as error, catalog.use("mine"):
        pass
    assert error.value.reason == "ADAPTER_NOT_VERIFIED"


@pytest.mark.parametrize("scores", [(-1.0, -2.0), (float("nan"), -2.0)])
async def test_an_adapter_that_fails_its_first_proof_is_taken_out_again(folder: Path, scores: tuple[float, ...]) -> None:
    engine = Pretender()
    engine.scores["mine"] = scores
    catalog = catalog_of(engine, str(folder))
    with pytest.raises(FailedPrecondition):
        await catalog.load("mine", str(folder), "")
    assert engine.loaded == []
    assert [model.name for model in catalog.models()] == ["base"]


async def test_a_load_that_is_cancelled_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Pretender()
    catalog = catalog_of(engine, str(folder))
    proving = asyncio.Event()

    async def never(*_: Any) -> Any:
        proving.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(engine, "score", never)
    task = asyncio.create_task(catalog.load("mine", str(folder), ""))
    await proving.wait()
    assert [(model.name, model.state) for model in catalog.models()[1:]] == [("mine", State.LOADED)]
    with pytest.raises(Unavailable) as early, catalog.use("mine"):
        pass
    assert early.value.reason == "ADAPTER_NOT_READY"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.loaded == []
    assert len(catalog.models()) == 1


async def test_an_unload_waits_for_its_requests_and_refuses_new_ones(folder: Path) -> None:
    engine = Pretender()
    engine.hold = asyncio.Event()
    catalog = catalog_of(engine, str(folder))
    await catalog.load("mine", str(folder), "")
    with catalog.use("mine"):
        leaving = asyncio.create_task(catalog.unload("mine"))
        await asyncio.sleep(0.01)
        assert not leaving.done()
        assert engine.loaded == ["mine"]
        with pytest.raises(NotFound), catalog.use("mine"):
            pass
    await leaving
    assert engine.loaded == []


async def test_an_alias_stands_for_a_base_or_a_proven_adapter_and_for_no_alias(folder: Path) -> None:
    catalog = catalog_of(Pretender(), str(folder))
    await catalog.load("mine", str(folder), "")
    await catalog.set_alias("production", "mine", None)
    with catalog.use("production") as route:
        assert (route.name, route.adapter) == ("mine", "mine")
    with pytest.raises(NotFound):
        await catalog.set_alias("other", "production", None)
    for taken in ("base", "mine"):
        with pytest.raises(AlreadyExists):
            await catalog.set_alias(taken, "base", None)
    with pytest.raises(AlreadyExists):
        await catalog.load("production", str(folder), "")
    with pytest.raises(FailedPrecondition):
        await catalog.unload("mine")
    await catalog.set_alias("production", "base", "mine")
    await catalog.unload("mine")
    with catalog.use("production") as route:
        assert (route.name, route.adapter) == ("base", None)
