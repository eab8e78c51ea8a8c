"""What every stage of one trial shares. Knows no stage."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.clients import SERVICES, addresses_from_environment
from flows.connections import Services
from flows.data.encoder import EncoderFiles, EncoderTokens, find_encoder, load_encoder_tokens
from flows.data_spec import is_folder
from flows.earlier_run import files_of
from flows.fingerprint import Fingerprints
from flows.local_stack import LocalStack, running_stack
from flows.progress import Progress
from flows.prompting import Template, load_template
from flows.spec import LoadedSpec, ModelSpec, Spec
from flows.store import Store, digest


class Trial:
    """A spec with the store that keeps its results, the services that do its work, and whoever listens to its progress."""

    def __init__(self, loaded: LoadedSpec, home: Path, store: Store, services: Services, progress: Progress) -> None:
        self.loaded, self.home, self.store, self.services, self.progress = loaded, home, store, services, progress
        self.fingerprints = Fingerprints(home / "fingerprints.json")

    @property
    def spec(self) -> Spec:
        """What the user wrote."""
        return self.loaded.spec

    @cached_property
    def template(self) -> Template:
        """The prompt template of all arms."""
        return load_template(self.spec.prompt, self.loaded.path.parent)

    def base_identity(self, model: str) -> str:
        """What stands for a base in the keys of artifacts: the hash of its files, its hub name, or its provider and its name there."""
        spec = self.spec.models[model]
        if spec.base is None:
            return f"{spec.engine}:{spec.url}:{spec.model}"
        base = self.loaded.base(model)
        return self.fingerprints.model(Path(base)) if is_folder(base) else f"hub:{base}"

    @cached_property
    def encoder_files(self) -> EncoderFiles | None:
        """Files of the retrieval encoder, where the spec counts by its tokens. Raises UserError when they cannot be had."""
        encoder = self.loaded.encoder
        return find_encoder(encoder, is_folder(encoder)) if self.spec.retrieval.chunk.count == "encoder" else None

    @cached_property
    def encoder_tokens(self) -> EncoderTokens | None:
        """What counts the encoder's tokens, where the spec counts by them."""
        return load_encoder_tokens(self.encoder_files) if self.encoder_files else None

    @cached_property
    def inputs(self) -> Mapping[str, Any]:
        """All that the results depend on, as it was when the trial began: the spec and the contents of every file that it names."""
        return self.read_inputs()

    def read_inputs(self) -> Mapping[str, Any]:
        """The same, read now. Raises UserError when a file cannot be read."""
        data = self.spec.data
        files = {str(source.path): self.fingerprints.file(self.loaded.resolve(source.path)) for source in data.sources}
        folders = {str(path): self.fingerprints.folder(self.loaded.resolve(path)) for path in data.corpus}
        bases = {name: self.base_identity(name) for name in self.spec.models}
        template = load_template(self.spec.prompt, self.loaded.path.parent)
        encoder, files_of_encoder = self.loaded.encoder, self.encoder_files
        counted_by = (
            {"tokenizer": [self.fingerprints.file(files_of_encoder.tokenizer), files_of_encoder.max_tokens]} if files_of_encoder else {}
        )
        return {
            "spec": self.spec.model_dump(mode="json"),
            "files": files,
            "corpus": folders,
            "bases": bases,
            "encoder": self.fingerprints.folder(Path(encoder)) if is_folder(encoder) else encoder,
            "template": {"user": template.user, "system": template.system, "abstentions": list(template.abstentions)},
            **counted_by,
            **({"preferences": pairs} if (pairs := self._preferences()) else {}),
        }

    def _preferences(self) -> dict[str, str]:
        """Contents of the files that pairs of answers come from."""
        named = (training.preferences for training in self.spec.training.values() if training.preferences is not None)
        files = {name: path for one in named for name, path in files_of(one, self.loaded.resolve).items()}
        return {name: self.fingerprints.file(path) for name, path in files.items()}

    def run_key(self) -> str:
        """Address of the whole trial."""
        return digest(self.inputs)


def open_trial(loaded: LoadedSpec, home: Path, progress: Progress) -> Trial:
    """The trial of a spec, with services by address, of a running stack, or of a stack of its own that starts at the first need."""
    addresses = addresses_from_environment() or running_stack(home)
    folders = tuple(Path(name) for name in (*loaded.bases.values(), loaded.encoder) if is_folder(name))
    spec = loaded.spec
    hosted = {family.model for family in spec.training.values() if family.method == "hosted"}
    stack = None
    if not addresses:
        needed, engines = needed_services(spec), engine_settings(spec)
        provider = next((_account(spec.models[name]) for name in sorted(hosted)), None)
        stack = LocalStack(home, loaded.bases, folders, spec.prompt.abstentions, needed, engines, provider)
    services = Services(addresses or {}, stack, progress.say)
    return Trial(loaded, home, Store(str(home / "store")), services, progress)


def needed_services(spec: Spec) -> tuple[str, ...]:
    """Services that the trial uses: nobody waits for a trainer where nothing is trained."""
    trains = any(arm.adapter is not None for arm in spec.arms.values())
    return tuple(service for service in SERVICES if trains or service != "trainer")


def engine_settings(spec: Spec) -> dict[str, dict[str, Any]]:
    """Settings of the generator's engines for the models of providers, by the models' names."""
    return {name: _provider(model) for name, model in spec.models.items() if model.engine is not None}


def _account(model: ModelSpec) -> dict[str, Any]:
    """Where a provider trains."""
    return model.model_dump(include={"url", "api_key_variable"})


def _provider(model: ModelSpec) -> dict[str, Any]:
    found = model.model_dump(include={"engine", "model", "url", "api_key_variable"})
    if model.price is None:
        return found
    return found | {
        "usd_per_million_input_tokens": model.price.input_usd,
        "usd_per_million_output_tokens": model.price.output_usd,
        "usd_per_million_cached_input_tokens": model.price.cached_input_usd,
    }
