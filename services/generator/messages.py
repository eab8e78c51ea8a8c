"""Messages of the generator's contract to values of the domain and back. Holds no rule of its own."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from tunetrial.common.v1 import common_pb2
from tunetrial.generator.v1 import generator_pb2
from tunetrial.retriever.v1 import retriever_pb2

from services.common.errors import InvalidArgument
from services.common.server import to_failure
from services.generator.domain import (
    AliasChange,
    Constraint,
    ConstraintKind,
    Decoding,
    Finish,
    Generation,
    Hit,
    Model,
    Passage,
    Prompt,
    Proof,
    Retrieval,
    State,
    Token,
    Turn,
)
from services.generator.generator import Answer, Call, Overflow, Question, Text
from services.generator.prompting import Example, Template

_ROLES: dict[int, str] = {common_pb2.ROLE_SYSTEM: "system", common_pb2.ROLE_USER: "user", common_pb2.ROLE_ASSISTANT: "assistant"}
_FINISHES = {
    Finish.END: generator_pb2.FINISH_REASON_END,
    Finish.STOP: generator_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: generator_pb2.FINISH_REASON_LENGTH,
}
_STATES = {
    State.LOADED: generator_pb2.ADAPTER_STATE_LOADED,
    State.VERIFIED: generator_pb2.ADAPTER_STATE_VERIFIED,
    State.REJECTED: generator_pb2.ADAPTER_STATE_REJECTED,
}
_OVERFLOWS: dict[int, Overflow] = {
    generator_pb2.OVERFLOW_UNSPECIFIED: Overflow.ERROR,
    generator_pb2.OVERFLOW_ERROR: Overflow.ERROR,
    generator_pb2.OVERFLOW_CUT_PASSAGES: Overflow.CUT_PASSAGES,
}


def to_call(request: generator_pb2.GenerateRequest) -> Call:
    """A prompt to a model. Raises InvalidArgument for a prompt that is missing or has a turn without a role."""
    return Call(request.model, _prompt(request.prompt), _decoding(request.decoding))


def to_question(request: generator_pb2.AnswerRequest, default: Template) -> Question:
    """A question over passages. Raises InvalidArgument for an overflow rule that is not known."""
    overflow = _OVERFLOWS.get(request.overflow)
    if overflow is None:
        raise InvalidArgument("OVERFLOW_INVALID", "overflow {overflow} is not known", overflow=request.overflow, field="overflow")
    template = to_template(request.template) if request.HasField("template") else default
    source: tuple[Passage, ...] | Retrieval | None = None
    if request.WhichOneof("source") == "passages":
        source = tuple(_passage(passage) for passage in request.passages.passages)
    elif request.WhichOneof("source") == "retrieval":
        source = Retrieval(request.retrieval.index, request.retrieval.settings.SerializeToString())
    return Question(request.model, request.question, source, template, _decoding(request.decoding), overflow)


def to_template(template: common_pb2.PromptTemplate) -> Template:
    """A prompt template."""
    examples = tuple(
        Example(example.question, tuple(_passage(passage) for passage in example.passages), example.answer) for example in template.examples
    )
    system = template.system if template.HasField("system") else None
    return Template(template.name, template.user, system, examples, tuple(template.abstentions))


def from_text(text: Text) -> generator_pb2.GenerateResponse:
    """Text, and how it came about."""
    made = text.generation
    return generator_pb2.GenerateResponse(
        text=made.text,
        finish_reason=_FINISHES[made.finish],
        tokens=[_token(token) for token in made.tokens],
        usage=_usage(made),
        model=text.model,
        prompt_hash=text.prompt_hash,
        seed=made.seed,
        snapshot=made.snapshot,
    )


def from_answer(answer: Answer) -> generator_pb2.AnswerResponse:
    """An answer with its passages."""
    made = answer.generation
    kinds = {True: generator_pb2.CITATION_KIND_MARKED, False: generator_pb2.CITATION_KIND_VERBATIM}
    return generator_pb2.AnswerResponse(
        text=answer.text,
        abstained=answer.abstained,
        citations=[generator_pb2.Citation(passage_id=citation.passage_id, kind=kinds[citation.marked]) for citation in answer.citations],
        shown=[from_hit(hit) for hit in answer.shown],
        cut_passage_ids=answer.cut,
        finish_reason=_FINISHES[made.finish],
        usage=_usage(made),
        model=answer.model,
        prompt_hash=answer.prompt_hash,
        tokens=[_token(token) for token in made.tokens],
        seed=made.seed,
        snapshot=made.snapshot,
    )


def from_hit(hit: Hit) -> retriever_pb2.Hit:
    """A passage that is shown."""
    shown = hit.passage
    passage = common_pb2.Passage(
        id=shown.id, text=shown.text, document=shown.document, title=shown.title, heading=shown.heading, metadata=shown.metadata
    )
    return retriever_pb2.Hit(
        passage=passage,
        rank=hit.rank or 0,
        score=hit.score or 0.0,
        lexical_rank=hit.lexical_rank,
        lexical_score=hit.lexical_score,
        dense_rank=hit.dense_rank,
        dense_score=hit.dense_score,
        rerank_score=hit.rerank_score,
    )


def from_model(model: Model) -> generator_pb2.Model:
    """A base, an adapter or an alias."""
    kind = generator_pb2.MODEL_KIND_BASE
    if model.target:
        kind = generator_pb2.MODEL_KIND_ALIAS
    elif model.state is not None:
        kind = generator_pb2.MODEL_KIND_ADAPTER
    return generator_pb2.Model(
        name=model.name,
        kind=kind,
        base=model.base,
        uri=model.uri,
        weights_sha256=model.weights_sha256,
        state=None if model.state is None else _STATES[model.state],
        proof=None if model.proof is None else _proof(model.proof),
        target=model.target,
        context_tokens=model.context_tokens,
        load_time=_timestamp(model.load_time),
        engine=model.engine,
        rejection=None if model.rejection is None else to_failure(model.rejection),
    )


def from_alias_change(change: AliasChange) -> generator_pb2.AliasChange:
    """A change of an alias."""
    return generator_pb2.AliasChange(target=change.target, time=_timestamp(change.time))


def _prompt(prompt: generator_pb2.Prompt) -> Prompt:
    if prompt.WhichOneof("input") == "text":
        return prompt.text
    if prompt.WhichOneof("input") != "conversation":
        raise InvalidArgument("PROMPT_EMPTY", "set `conversation` or `text`", field="prompt.input")
    turns = []
    for message in prompt.conversation.messages:
        if message.role not in _ROLES:
            raise InvalidArgument("CONVERSATION_INVALID", "every turn needs a role", field="prompt.conversation.messages.role")
        turns.append(Turn(_ROLES[message.role], message.content))
    return tuple(turns)


def _decoding(decoding: generator_pb2.Decoding) -> Decoding:
    return Decoding(
        decoding.max_tokens if decoding.HasField("max_tokens") else None,
        decoding.temperature if decoding.HasField("temperature") else None,
        decoding.top_p if decoding.HasField("top_p") else None,
        decoding.top_k if decoding.HasField("top_k") else None,
        decoding.seed if decoding.HasField("seed") else None,
        tuple(decoding.stop),
        decoding.top_log_probabilities if decoding.HasField("top_log_probabilities") else None,
        _constraint(decoding.constraint) if decoding.HasField("constraint") else None,
    )


def _constraint(constraint: generator_pb2.Constraint) -> Constraint:
    kind = constraint.WhichOneof("kind")
    if kind == "json_schema":
        return Constraint(ConstraintKind.JSON_SCHEMA, (constraint.json_schema,))
    if kind == "regex":
        return Constraint(ConstraintKind.REGEX, (constraint.regex,))
    return Constraint(ConstraintKind.CHOICE, tuple(constraint.choices.texts))


def _passage(passage: common_pb2.Passage) -> Passage:
    return Passage(passage.id, passage.text, passage.document, passage.title, passage.heading, dict(passage.metadata))


def _token(token: Token) -> generator_pb2.Token:
    top = [generator_pb2.TopToken(id=rival.id, text=rival.text, log_probability=rival.log_probability) for rival in token.top]
    return generator_pb2.Token(id=token.id, text=token.text, log_probability=token.log_probability, top=top)


def _usage(made: Generation) -> common_pb2.Usage:
    return common_pb2.Usage(
        prompt_tokens=made.prompt_tokens, completion_tokens=made.completion_tokens, latency_ms=made.latency_ms, cost_usd=made.cost_usd
    )


def _proof(proof: Proof) -> generator_pb2.AdapterProof:
    return generator_pb2.AdapterProof(
        canary_count=proof.canary_count,
        difference_from_base=proof.difference_from_base,
        base_noise=proof.base_noise,
        difference_from_manifest=proof.difference_from_manifest,
        tolerance=proof.tolerance,
        time=_timestamp(proof.time),
        replica_count=proof.replica_count,
        answered_as=proof.answered_as,
    )


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
