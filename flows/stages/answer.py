"""Stage 6: every contestant answers every test question. Asks the generator.

An answer is kept under the hash of all that decides it (weights, prompt, decoding), so none is ever asked for twice: not after a kill, not
in another arm that would get the same, not in another trial in the same store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tunetrial.generator.v1 import generator_pb2

from flows.clients import explain_failure
from flows.connections import exchange, together
from flows.data.quotes import divided
from flows.data.text import normalise
from flows.errors import TrialError
from flows.prompting import Shot, Template, passage_message, prompt_hash
from flows.records import Answer, Contestant, Item, Passage
from flows.stages.prepare import Prepared
from flows.stages.serve import Proof, serve_adapter, serve_base
from flows.stages.snapshot import Snapshot
from flows.stages.train import AdapterKey, TrainedAdapter
from flows.store import Rows, digest
from flows.trial import Trial

VERSION = 1
_IN_FLIGHT = 32
_REFUSED = "ANSWER_REFUSED"
"""A provider did not want to answer: that is what this model does with the question, and asking again would cost again."""
# So many contestants at once: their requests share the engine's batches.
_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class _Question:
    """One answer to be had, and the address under which it is kept."""

    address: str
    item: Item
    sample: int
    passages: tuple[Passage, ...]
    prompt_hash: str


async def answer(
    trial: Trial, prepared: Prepared, snapshot: Snapshot | None, adapters: Mapping[AdapterKey, TrainedAdapter]
) -> tuple[tuple[Answer, ...], tuple[Proof, ...]]:
    """All answers in the order of contestants and items, and the proofs of the adapters that gave them."""
    contestants = trial.spec.contestants()
    trial.progress.stage("answer", len(contestants) * len(prepared.test) * trial.spec.decoding.samples)
    gate = asyncio.Semaphore(_AT_ONCE)
    bases: dict[str, asyncio.Future[str]] = {}

    async def one(contestant: Contestant) -> tuple[list[Answer], Proof | None]:
        async with gate:
            return await _Asker(trial, prepared, snapshot, adapters, bases).ask(contestant)

    results = await together(one(contestant) for contestant in contestants)
    answers = tuple(row for rows, _ in results for row in rows)
    trial.progress.finish("answer", f"{len(answers)} answers")
    return answers, tuple({proof.adapter: proof for _, proof in results if proof is not None}.values())


class _Asker:
    """Asks for one contestant."""

    def __init__(
        self,
        trial: Trial,
        prepared: Prepared,
        snapshot: Snapshot | None,
        adapters: Mapping[AdapterKey, TrainedAdapter],
        bases: dict[str, asyncio.Future[str]],
    ) -> None:
        self._trial, self._prepared, self._snapshot, self._adapters, self._bases = trial, prepared, snapshot, adapters, bases
        self._template: Template = trial.template
        self._quoting = trial.spec.quoting()

    async def ask(self, contestant: Contestant) -> tuple[list[Answer], Proof | None]:
        adapter = self._adapter(contestant)
        identity = {
            "version": VERSION,
            "base": self._trial.base_identity(contestant.model),
            "adapter": adapter.identity if adapter else None,
            "decoding": self._trial.spec.decoding.model_dump(mode="json", exclude={"samples", "seed"}),
            "overflow": self._trial.spec.prompt.overflow,
            "abstentions": list(self._template.abstentions),
        }
        group = digest(identity)
        rows = Rows(self._trial.store, "answers", group)
        shots = self._shots(contestant)
        questions = list(self._questions(contestant, shots, group))
        missing = [question for question in questions if question.address not in rows]
        self._trial.progress.advance("answer", len(questions) - len(missing))
        if missing:
            proof = await self._serve(contestant, adapter)
            if proof is not None:
                # Before the first answer: whenever the trial is killed, no answer is kept without the proof of its adapter.
                self._trial.store.write_json("proofs", group, "proof.json", asdict(proof))
                self._trial.store.finish("proofs", group, identity)
            try:
                await self._fetch(contestant, adapter, shots, missing, rows)
            finally:
                rows.flush()
        found = [self._record(contestant, question, rows[question.address]) for question in questions]
        return found, self._proof(group)

    def _proof(self, group: str) -> Proof | None:
        store = self._trial.store
        return Proof(**store.read_json("proofs", group, "proof.json")) if store.has("proofs", group) else None

    def _adapter(self, contestant: Contestant) -> TrainedAdapter | None:
        if contestant.adapter is None:
            return None
        return self._adapters[AdapterKey(contestant.adapter, contestant.size or 0, contestant.seed or 0)]

    async def _serve(self, contestant: Contestant, adapter: TrainedAdapter | None) -> Proof | None:
        if contestant.model not in self._bases:
            self._bases[contestant.model] = asyncio.ensure_future(serve_base(self._trial, contestant.model))
        base = await asyncio.shield(self._bases[contestant.model])
        return await serve_adapter(self._trial, base, adapter) if adapter else None

    def _shots(self, contestant: Contestant) -> tuple[Shot, ...]:
        # From the end, as they were drawn: the examples of an arm do not depend on how many another arm has.
        drawn = self._prepared.shots[len(self._prepared.shots) - contestant.shots :]
        return tuple(Shot(item.question, self._passages(contestant, item), item.references[0]) for item in drawn)

    def _passages(self, contestant: Contestant, item: Item) -> tuple[Passage, ...]:
        if not contestant.rag or self._snapshot is None:
            return ()
        return self._snapshot.shown(self._prepared, item.id)

    def _questions(self, contestant: Contestant, shots: Sequence[Shot], group: str) -> Iterator[_Question]:
        decoding = self._trial.spec.decoding
        for item in self._prepared.test:
            passages = self._passages(contestant, item)
            shown = prompt_hash(self._template.turns(item.question, passages, shots))
            for sample in range(decoding.samples):
                seed = decoding.seed + sample if decoding.temperature else None
                # Passage ids are part of the row that is kept, so they are part of its address.
                address = digest([group, shown, seed, [passage.id for passage in passages]])
                yield _Question(address, item, sample, passages, shown)

    async def _fetch(
        self, contestant: Contestant, adapter: TrainedAdapter | None, shots: Sequence[Shot], missing: Sequence[_Question], rows: Rows
    ) -> None:
        model = adapter.name if adapter else await self._bases[contestant.model]
        by_address = {question.address: question for question in missing}
        requests = {
            address: generator_pb2.BatchGenerateRequest(id=address, answer=self._request(model, question, shots))
            for address, question in by_address.items()
        }
        async with self._trial.services.use("generator") as clients:
            async for response in exchange(clients.generator.BatchGenerate, requests, _IN_FLIGHT):
                question = by_address[response.id]
                if response.failure.reason == _REFUSED:
                    rows.add(response.id, _refusal(question))
                    self._trial.progress.advance("answer", note=contestant.id)
                    continue
                if response.HasField("failure"):
                    failure = explain_failure("generator", response.failure)
                    raise type(failure)(
                        failure.service,
                        failure.code,
                        failure.reason,
                        f"{contestant.id}, item {question.item.id}: {response.failure.message}",
                        users_mistake=failure.exit_code == 2,
                    )
                rows.add(response.id, self._row(contestant, question, model, response.answer))
                if response.answer.usage.cost_usd:
                    rows.flush()  # what was paid for is never paid for twice
                self._trial.progress.advance("answer", note=contestant.id)

    def _request(self, model: str, question: _Question, shots: Sequence[Shot]) -> generator_pb2.AnswerRequest:
        spec = self._trial.spec
        decoding = generator_pb2.Decoding(
            max_tokens=spec.decoding.max_tokens,
            temperature=spec.decoding.temperature,
            top_p=spec.decoding.top_p,
            stop=spec.decoding.stop,
        )
        if spec.decoding.temperature:
            decoding.seed = spec.decoding.seed + question.sample
        request = generator_pb2.AnswerRequest(
            model=model,
            question=question.item.question,
            template=self._template.message(shots),
            decoding=decoding,
            overflow=generator_pb2.OVERFLOW_CUT_PASSAGES if spec.prompt.overflow == "cut" else generator_pb2.OVERFLOW_ERROR,
        )
        if question.passages:
            request.passages.passages.extend(passage_message(passage) for passage in question.passages)
        return request

    def _row(self, contestant: Contestant, question: _Question, model: str, response: generator_pb2.AnswerResponse) -> dict[str, Any]:
        if response.model != model:
            raise TrialError(f"{contestant.id}: asked {model} and {response.model} answered; nothing of this arm can be trusted")
        if not response.cut_passage_ids and response.prompt_hash != question.prompt_hash:
            raise TrialError(
                f"{contestant.id}, item {question.item.id}: the generator rendered another prompt than the one trained on "
                f"({response.prompt_hash[:12]}, expected {question.prompt_hash[:12]})"
            )
        usage = response.usage
        return {
            "text": response.text,
            "abstained": response.abstained,
            "finish_reason": generator_pb2.FinishReason.Name(response.finish_reason).removeprefix("FINISH_REASON_").lower(),
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "latency_ms": usage.latency_ms,
            "cost_usd": usage.cost_usd if usage.HasField("cost_usd") else None,
            "prompt_hash": response.prompt_hash,
            "passages": [hit.passage.id for hit in response.shown],
            "cut": list(response.cut_passage_ids),
            "cited": [citation.passage_id for citation in response.citations],
            "snapshot": response.snapshot,
        }

    def _record(self, contestant: Contestant, question: _Question, row: Mapping[str, Any]) -> Answer:
        lists = {name: tuple(row[name]) for name in ("passages", "cut", "cited")}
        found = Answer(contestant=contestant.id, item=question.item.id, sample=question.sample, **{**row, **lists})
        if contestant.id not in self._quoting or found.text is None:
            return found
        quotation, text = divided(found.text)
        declines = normalise(text) in map(normalise, self._template.abstentions)
        return replace(found, text=text, quotation=quotation, abstained=found.abstained or declines)


def _refusal(question: _Question) -> dict[str, Any]:
    return {
        "text": None,
        "error": _REFUSED,
        "abstained": False,
        "finish_reason": "refused",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "latency_ms": 0.0,
        "cost_usd": None,
        "prompt_hash": question.prompt_hash,
        "passages": [passage.id for passage in question.passages],
        "cut": [],
        "cited": [],
    }
