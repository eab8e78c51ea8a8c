"""A spec in a file, read strictly: unknown keys are refused with the nearest right name, all mistakes are reported together.

Knows no data and no service; `validate.py` checks a spec against those.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from flows.data_spec import ChunkSpec, DataSpec, RetrievalSpec, SourceSpec
from flows.errors import UserError
from flows.grid import GridMistake, expanded
from flows.spec import LoadedSpec, Spec
from flows.study_spec import LoadedStudy, StudySpec


class SpecError(UserError):
    """A spec that cannot be run; `problems` lists every mistake found."""

    def __init__(self, path: Path, problems: list[str]) -> None:
        self.problems = problems
        head = f"{path}: {len(problems)} mistake{'s' if len(problems) != 1 else ''}"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in problems)]))


Model = TypeVar("Model", bound=BaseModel)


def load(path: Path) -> LoadedSpec:
    """The spec in a YAML file. Raises SpecError with every mistake found in it; contacts nothing and reads no data."""
    spec = _trial(_raw(path), path)
    problems = list(_contradictions(spec))
    if problems:
        raise SpecError(path, problems)
    return LoadedSpec(spec, path.resolve())


def load_study(path: Path) -> LoadedStudy:
    """A study of retrieval: from a YAML file of its own, from a trial's (its data and retrieval), or of a BEIR folder as it is."""
    if path.is_dir():
        return _beir_study(path.resolve())
    raw = _raw(path)
    if "arms" in raw or "models" in raw:
        # What is wrong with models and arms is for `tunetrial run` to say: retrieval needs none.
        trial = _trial(raw, path)
        return LoadedStudy(StudySpec(name=trial.name, data=trial.data, retrieval=trial.retrieval), path.resolve())
    spec = _parsed(raw, StudySpec, path)
    problems = list(_window_mistakes(spec))
    if problems:
        raise SpecError(path, problems)
    return LoadedStudy(spec, path.resolve())


def _beir_study(folder: Path) -> LoadedStudy:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", folder.name).lstrip("._-")[:64] or "beir"
    source = SourceSpec(reader="beir", path=Path())
    # A document is one passage, whole, and all measures are taken at 10: as BEIR's own evaluation does it.
    retrieval = RetrievalSpec(k=10, chunk=ChunkSpec(unit="document", max_tokens=4096))
    return LoadedStudy(StudySpec(name=name, data=DataSpec(sources=(source,)), retrieval=retrieval), folder / "study.yaml")


def _raw(path: Path) -> dict[Any, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  a SafeLoader, made strict below
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Start from examples/quickstart/trial.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise SpecError(path, [f"not valid YAML: {_flat(str(error))}"]) from None
    if not isinstance(raw, dict):
        raise SpecError(path, ["a spec is a mapping with the keys " + ", ".join(Spec.model_fields)])
    return raw


def _trial(raw: dict[Any, Any], path: Path) -> Spec:
    try:
        return _parsed(expanded(raw), Spec, path)
    except GridMistake as error:
        raise SpecError(path, [str(error)]) from None


def _parsed(raw: dict[Any, Any], model: type[Model], path: Path) -> Model:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise SpecError(path, [_explain(dict(detail), model) for detail in error.errors()]) from None


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, and reads 1e-3 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot in 1e-3; people do not write one.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789"))


def _flat(text: str) -> str:
    return " ".join(text.split())


def _explain(detail: Mapping[str, Any], spec: type[BaseModel]) -> str:
    # A discriminating step of a union is no key that the user wrote.
    location = [str(step) for step in detail["loc"] if not str(step).startswith(("context-", "search-"))]
    where = ".".join(location)
    if detail["type"] == "extra_forbidden":
        key = location[-1]
        known = _fields_at(location[:-1], spec)
        near = difflib.get_close_matches(key, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    message = _flat(str(detail["msg"])).removeprefix("Value error, ")
    given = detail.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{where}: {message}{shown}"


def _fields_at(location: list[str], spec: type[BaseModel]) -> list[str]:
    """Names of the keys allowed at a place in the spec."""
    model: Any = spec
    for step in location:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[step].annotation if step in model.model_fields else None
        else:
            # A mapping by name or a list: go to what it holds.
            model = next(iter(_models_in(model)), None)
            continue
        models = list(_models_in(model))
        if len(models) == 1 and not _is_mapping(model):
            model = models[0]
    models = list(_models_in(model))
    return [name for found in models[:1] for name in found.model_fields]


def _is_mapping(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) in (dict, tuple)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _window_mistakes(spec: StudySpec) -> Iterator[str]:
    window = spec.retrieval.window
    for k in spec.grid.k or ():
        if window is not None and k > window:
            yield f"grid.k: {k} is more than retrieval.window ({window}), from which passages are taken"


def _contradictions(spec: Spec) -> Iterator[str]:
    """What is wrong between the parts of a spec."""
    for number, source in enumerate(spec.data.sources):
        if source.reader == "beir":
            yield f"data.sources.{number}.reader: beir has no answers to judge by; `tunetrial retrieval` measures it without generation"
    for family, training in spec.training.items():
        if training.model not in spec.models:
            yield f"training.{family}.model: {_unknown(training.model, spec.models)}"
        elif training.method == "hosted" and spec.models[training.model].base is not None:
            yield f"training.{family}.model: method hosted trains a provider's model, and {training.model} has weights here; take another"
        elif training.method != "hosted" and spec.models[training.model].base is None:
            yield (
                f"training.{family}.model: {training.model} is a provider's model, whose weights cannot be trained here; "
                "name one with a base, or set method: hosted"
            )
    yield from _training_mistakes(spec)
    for name, arm in spec.arms.items():
        if arm.model is not None and arm.model not in spec.models:
            yield f"arms.{name}.model: {_unknown(arm.model, spec.models)}"
        if arm.adapter is not None and arm.adapter not in spec.training:
            yield f"arms.{name}.adapter: {_unknown(arm.adapter, spec.training)}"
    control = spec.analysis.control
    if control not in spec.arms:
        yield f"analysis.control: {_unknown(control, spec.arms)}"
    elif spec.arms[control].adapter is not None:
        yield f"analysis.control: {control} is fine-tuned; the control must be one arm without an adapter"
    yield from _primary_mistakes(spec)
    expanded = [] if _dangling(spec) else [contestant.id for contestant in spec.contestants()]
    for twice in sorted({name for name in expanded if expanded.count(name) > 1}):
        yield f"arms: two arms would both be called {twice}; rename one"


def _training_mistakes(spec: Spec) -> Iterator[str]:
    quoting = [family for family, training in spec.training.items() if training.raft is not None and training.raft.quote]
    if quoting and any("\n" in text for text in spec.decoding.stop):
        yield f"decoding.stop: ends answers at a line break, and those of {quoting[0]} (raft.quote) have two lines; leave one out"
    hosted = {family: spec.models.get(training.model) for family, training in spec.training.items() if training.method == "hosted"}
    accounts = {(model.url, model.api_key_variable) for model in hosted.values() if model is not None}
    if len(accounts) > 1:
        yield f"training: {', '.join(hosted)} are trained by different providers or accounts; a trainer has one: make trials of them"


def _dangling(spec: Spec) -> bool:
    return any(arm.adapter is not None and arm.adapter not in spec.training for arm in spec.arms.values())


def _primary_mistakes(spec: Spec) -> Iterator[str]:
    primary = spec.analysis.primary
    if primary.criterion not in spec.judge.rubric:
        yield f"analysis.primary.criterion: {_unknown(primary.criterion, spec.judge.rubric)}"
    if primary.arm not in spec.arms:
        yield f"analysis.primary.arm: {_unknown(primary.arm, spec.arms)}"
        return
    if primary.arm == spec.analysis.control:
        yield "analysis.primary.arm: is the control itself; name the arm that should replace it"
    family = spec.arms[primary.arm].adapter
    sizes = spec.training[family].sizes if family in spec.training else ()
    if primary.size is not None and primary.size not in sizes:
        known = f"its sizes are {', '.join(map(str, sizes))}" if sizes else "it has no sizes"
        yield f"analysis.primary.size: {primary.arm} has no size {primary.size}; {known}"
    if primary.size is None and len(sizes) > 1:
        yield f"analysis.primary.size: say which of {primary.arm}'s sizes ({', '.join(map(str, sizes))})"


def _unknown(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, 1, 0.5)
    return f"there is no {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}")
